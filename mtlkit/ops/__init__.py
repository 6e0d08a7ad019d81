"""Every compiled operation of the models, a file each.

A file holds, in this order: the formula, the plain PyTorch form, the kernel, the autograd function,
and the public function, which chooses between the two forms with :func:`_dispatch.use_kernel`.
"""
