"""Features of frozen encoders: computed once, stored, looked up by id, and searched for nearest neighbours."""
