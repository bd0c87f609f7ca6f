"""Whether memory stays flat over many images, and what many annotations, classes and rows cost.

    PYTHONPATH=benchmarks python -m long_runs                # all of it: half an hour of a core
    PYTHONPATH=benchmarks python -m long_runs --only train,large --scale 0.1

Every row is a process of its own. Seconds are those of the processor; memory is resident: the peak of the process and, after
a `+`, of the processes that read images for it. Where a row has tenths, they are the peaks in ten equal parts of its time:
memory that grows shows there.
"""
