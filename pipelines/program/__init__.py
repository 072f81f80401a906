"""What all programs share: settings and their errors, the command line, the display, Ray's start, signals, number formats."""
