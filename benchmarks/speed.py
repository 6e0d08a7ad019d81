"""How fast mtlkit trains: against Torch-RecHub, FuxiCTR and torchjd, against its targets and
against the hardware.

    python benchmarks/speed.py [--only training,balancers,...] [--rounds N] [--redraw]

Everything is measured in pairs: systems take turns within a round, ratios are taken within rounds,
and medians are printed with their extremes. Results go to ``results/speed``; a section that is
measured again replaces its own part. ``benchmarks/README.md`` says what each section does.
"""

from speed.main import main

if __name__ == "__main__":
    main()
