"""A seeded simulator of faults: runs on a cluster of this machine to which everything happens, and which must end the same.

schedule.py    what happens: faults, each at a phase of a step; drawn by a seed, written as text, shrunk
points.py      in the workers: waits at the points of a schedule
program.py     `python -m training` with these points
places.py      where a run is stored: on a disk, or in an object store
simulation.py  a cluster, and one run under a schedule
checks.py      what must hold after it
records.py     what many schedules came to: a CSV file, and tables of it
__main__.py    many schedules, and the shortest one that fails
"""
