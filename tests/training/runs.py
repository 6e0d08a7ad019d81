"""What tests look at in a run."""


def parameters(run):
    return {name: value.detach().clone() for name, value in run.model.named_parameters()}


def difference(one, two):
    """The largest difference between two sets of parameters."""
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def watch_steps(run):
    """The steps that a run makes from now on, probes included, in order."""
    steps = []
    make = run._step

    def watched(*arguments):
        steps.append(make(*arguments))
        return steps[-1]

    run._step = watched
    return steps
