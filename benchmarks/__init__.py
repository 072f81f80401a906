"""Measurements, one command each: they run what users run, beside what users would pick instead, and write what they found."""
