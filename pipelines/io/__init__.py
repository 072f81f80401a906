"""Bytes from elsewhere: storage, downloads, tables, archives, weights; retries, limits, and a child process for risky ones."""
