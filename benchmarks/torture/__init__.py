"""What a hostile world does to the program, at scale: mutated files, kills, full disks, lost folders.

    make torture                                   # all of it
    PYTHONPATH=benchmarks python -m torture --tries 1000 --only config,onnx --jobs 2

A row a kind of trouble: how often it was tried, how often the command ended well, refused in one sentence, or was at fault.
"""
