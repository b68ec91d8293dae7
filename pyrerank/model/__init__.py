"""Models: the decoder, the vision tower, the layers that both are made of, and the heads.

They may import weights, devices, kernels, and the tensors of a pass (`pyrerank.engine.batch` and
`pyrerank.engine.prefix`).  They know nothing of prompts, and ask a device instead of its name.
"""
