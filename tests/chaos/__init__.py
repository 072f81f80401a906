"""A seeded simulator of faults: runs on a cluster of this machine to which everything happens, and which must end the same.

schedule.py    what happens: faults, each at a phase of a step; drawn by a seed, written as text, shrunk
points.py      in the workers: waits at the points of a schedule
program.py     `python -m training` with these points
simulation.py  a cluster, one run under a schedule, and what must hold after it
__main__.py    many schedules, their table, and the shortest schedule that fails
"""
