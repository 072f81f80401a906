"""Many runs, one table: a grid of overrides over a training config, each cell repeated over seeds."""
