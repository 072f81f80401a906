"""From a source to a prepared dataset: curate pairs into shards, assign ids, write the manifest; and check before all of that."""
