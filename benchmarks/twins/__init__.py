"""The examples' models a second time, in PyTorch: one file per task, which `benchmarks/epochs.py` times side by side.

Each file has `NAME`, the task as the table calls it; `SHARE`, the part of one epoch of the example that its batches are;
`batches(data)`, these batches, from the folder of real data or, where it is None, from what the example makes itself; and
`with_fastseq(seed)` and `with_torch(seed)`. Each of the two gives a function that takes one optimiser step on a batch and
returns the loss before it, as a float; both start from the same weights and train without dropout.
"""
