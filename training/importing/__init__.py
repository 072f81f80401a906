"""Configs from the command lines of other libraries."""
