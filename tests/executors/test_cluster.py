import pytest

from fusetune.errors import RecipeError, RunError
from fusetune.executors.cluster import Options, reason, require_room, require_same, room


def test_a_worker_lies_on_one_node():
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 4.0}, {"CPU": 64.0}]
    assert room(nodes, {"CPU": 1.0, "GPU": 1.0}) == 2 + 3
    assert room(nodes, {"CPU": 1.0, "GPU": 2.0}) == 1 + 2
    assert room(nodes, {"CPU": 0.1}) == 80 + 30 + 640
    assert room(nodes, {"TPU": 1.0}) == 0


def test_room_is_all_or_what_was_asked_for():
    nodes = [{"CPU": 4.0, "memory": 1e9, "node:10.0.0.1": 1.0}]
    assert require_room(nodes, {"CPU": 1.0}, None) == 4
    assert require_room(nodes, {"CPU": 1.0}, 3) == 3
    with pytest.raises(RecipeError, match=r"5 workers of 1 CPU .* room for 4 \(4 CPU\)"):
        require_room(nodes, {"CPU": 1.0}, 5)
    with pytest.raises(RecipeError, match=r"no node is there"):
        require_room([], {"CPU": 1.0}, None)


def test_a_gpu_is_taken_where_there_are_some():
    assert Options.of().per_worker([{"CPU": 4.0}]) == {"CPU": 1.0}
    assert Options.of().per_worker([{"CPU": 4.0}, {"GPU": 2.0}]) == {"CPU": 1.0, "GPU": 1.0}
    given = Options.of(gpus_per_worker=0, resources_per_worker={"node_a": 1})
    assert given.per_worker([{"GPU": 2.0}]) == {"CPU": 1.0, "node_a": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worker": 2}, "executor.worker: unknown (did you mean workers?)"),
        ({"workers": 0}, "executor.workers: a whole number from 1; got 0"),
        ({"workers": True}, "executor.workers"),
        ({"retries": 1.5}, "executor.retries"),
        ({"cpus_per_worker": -1}, "executor.cpus_per_worker: a number from 0"),
        ({"wait": "long"}, "executor.wait"),
        ({"deterministic": "yes"}, "executor.deterministic: true or false"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(RecipeError) as info:
        Options.of(**options)
    assert message in str(info.value)


def test_nodes_need_the_same_software():
    here = {"fusetune": "0.1.0", "python": "3.11", "torch": "2.6", "transformers": "5.0"}
    require_same(here, {**here, "host": "n1"})
    with pytest.raises(RunError, match=r"node n1 .*python 3\.12 there, 3\.11 here"):
        require_same(here, {**here, "python": "3.12", "host": "n1"})


def test_a_reason_is_one_line():
    ray = ValueError(
        "The actor died.\n\tclass_name: Worker\n\tactor_id: 12\nIts node has died."
    )
    assert reason(ray) == "Its node has died"
    python = ValueError("  File x\n    import y\n    ^^^^^^^^\nModuleNotFoundError: no y\n")
    assert reason(python) == "ModuleNotFoundError: no y"
    assert reason(ValueError()) == "ValueError"
