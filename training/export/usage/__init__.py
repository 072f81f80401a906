"""How each export is used with the target's library alone: scripts that import nothing of raylign, except that of safetensors.

The model card shows the file of its target; the comparison with the run calls the same functions.
"""
