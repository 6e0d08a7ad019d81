import pytest

from mtlkit.data.ali_ccp.simulate import Simulation, write_archives

SIMULATION = Simulation(rows=1500, purchase_rate=0.1, seed=5)


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    """A folder with both archives of a small simulated set."""
    folder = tmp_path_factory.mktemp("ali") / "simulated"
    write_archives(folder, SIMULATION)
    return folder
