"""What must hold on a GPU, checked in ten minutes: a row a check, written as soon as it is known.

    python benchmarks/gpu.py --device cuda:0 --budget 540 --out results/gpu
    python benchmarks/gpu.py --device cpu --only parity,syncs      # the same, small, without a GPU

Each section runs in a process of its own with a share of the time; one that fails or hangs is a
row with its reason, and the next one goes on. ``docs/gpu.md`` says what a machine without a network
needs, and what each section checks.
"""

from gpu_checks.main import main

if __name__ == "__main__":
    main()
