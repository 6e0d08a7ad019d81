"""Every compiled operation of the models, a file each: the plain PyTorch form, the kernel, the
autograd function.
"""
