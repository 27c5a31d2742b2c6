"""fastseq on a GPU beside PyTorch on the same one: `python -m benchmarks.cuda`.

Both compute in one process, on the default stream, in turn. `device.py` has the GPU, `case.py` what a line of the table is and when its
answer is right, `cases_*.py` the lines, `timing.py` the clock, `worker.py` the process that times, `__main__.py` the command, and
`report.py` the table.

`tune_*.py` are for who works on the kernels: each family's alone, part by part and cut by cut, beside each other (`python -m benchmarks.cuda.tune_attention`).
"""
