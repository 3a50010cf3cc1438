"""A device node in a real Ray cluster: readings come from it alone, or not at all."""

import hashlib
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autocompress.config import Study
from autocompress.errors import MeasurementError
from autocompress.pipeline.prepare import prepare
from autocompress.pipeline.profile import profile
from autocompress.pipeline.progress import Silent, reporting_to
from autocompress.pipeline.run import StudyRun
from autocompress.pipeline.search import search_candidates
from autocompress.records import EvaluatorReference

pytestmark = [pytest.mark.integration, pytest.mark.slow]

HERE = Path(__file__).resolve().parent
LABELS = {"device": "rpi5"}


def study(folder, name, *, trials=3, wait=0.0, **target):
    return Study(
        name=name,
        task=f"{HERE / 'tiny.py'}:tiny",
        output=folder,
        target={"node": LABELS, "node_wait_s": wait, **target},
        measure={"latency_model": "off"},
        search={
            # Random: others stop what they take for hopeless, which depends on the readings.
            "sampler": {"kind": "random"},
            "trials": trials,
            "workers": 2,
            "recovery_epochs": 0.25,
            "rungs": (),
            "max_failures": 1.0,
        },
        finalists={"count": 2, "recovery_epochs": 0.25},
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("RAY_AUTH_MODE", raising=False)
        # A node that is gone is noticed in three seconds, not in twenty: no test is about how long Ray takes for that.
        checks = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
        head = {"num_cpus": 2, "include_dashboard": False, "_system_config": checks}
        found = Cluster(initialize_head=True, head_node_args=head)
        patch.setenv("RAY_ADDRESS", found.address)
        yield found
        found.shutdown()


@pytest.fixture(scope="module")
def joined(cluster):
    """This process is in the cluster; a session of each test's own would take seconds."""
    from autocompress.cluster.session import ray_session

    with ray_session(2):
        yield cluster


@pytest.fixture
def device(joined):
    nodes = Nodes(joined)
    nodes.add()
    yield nodes
    nodes.remove()


class Nodes:
    """The device node, put there and taken away."""

    def __init__(self, cluster):
        self.cluster, self.node = cluster, None

    def add(self):
        self.node = self.cluster.add_node(num_cpus=0, labels=LABELS)

    def remove(self):
        if self.node is not None:
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.node = None
            until(lambda: not living(LABELS))

    @property
    def id(self):
        return self.node.node_id


def living(labels):
    import ray

    return [n["NodeID"] for n in ray.nodes() if n["Alive"] and labels.items() <= n["Labels"].items()]


def until(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def asking(wait=0.0, files=None, **request):
    from autocompress.cluster.device import DeviceRequest

    evaluator = EvaluatorReference(factory=f"{HERE / 'device_evaluator.py'}:build")
    return DeviceRequest(labels=LABELS, wait_s=wait, evaluator=evaluator, request=request, files=files or {})


def ask(*arguments, **request):
    from autocompress.cluster.device import ask_device

    return ask_device(asking(*arguments, **request))


def test_without_a_cluster_nothing_is_trained_and_the_way_to_start_one_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    begun = time.monotonic()
    with pytest.raises(MeasurementError, match=r"RAY_ADDRESS is not set\. .*--labels=device=rpi5") as caught:
        prepare(study(tmp_path, "alone"))
    assert "ray start --head" in str(caught.value)
    assert time.monotonic() - begun < 10
    assert not (tmp_path / "alone").exists()


def test_an_absent_device_is_an_error_before_training_with_the_labels_that_there_are(joined, tmp_path):
    other = joined.add_node(num_cpus=0, labels={"device": "jetson"})
    begun = time.monotonic()
    with pytest.raises(MeasurementError, match="node labelled device=rpi5, got nodes labelled device=jetson; none"):
        prepare(study(tmp_path, "absent"))
    assert time.monotonic() - begun < 10
    assert not (tmp_path / "absent").exists()
    joined.remove_node(other, allow_graceful=False)


def test_an_absent_device_is_waited_for_until_the_deadline_and_progress_is_told(joined, tmp_path):
    told = []

    class Listener(Silent):
        def stage(self, name, detail):
            told.append(detail)

    begun = time.monotonic()
    with reporting_to(Listener()), pytest.raises(MeasurementError, match="labelled device=rpi5 within 2 s"):
        prepare(study(tmp_path, "late", wait=2.0))
    assert 2 <= time.monotonic() - begun < 15
    assert "waiting for a node labelled device=rpi5, 2 s left" in told


def test_a_device_that_comes_in_time_answers(joined):
    nodes = Nodes(joined)
    with ThreadPoolExecutor() as pool:  # nodes are started in the main thread
        asked = pool.submit(ask, wait=60.0)
        time.sleep(2.0)
        assert not asked.done()
        nodes.add()
        answer = asked.result()
    assert (answer.node_id, answer.reply["node"]) == (nodes.id, "device=rpi5")
    nodes.remove()


def test_files_arrive_whole_and_one_process_answers_one_request_at_a_time(device, tmp_path):
    import ray

    files = {name: tmp_path / name for name in ("dense", "model-0")}
    for name, path in files.items():
        path.write_bytes(name.encode() * 300_000)
    asked = asking(files={k: str(v) for k, v in files.items()}, sleep=0.5).model_dump(mode="json")

    @ray.remote(num_cpus=0.5)
    def from_elsewhere():
        from autocompress.cluster.device import answer_device

        return answer_device(asked)

    answers = ray.get([from_elsewhere.remote() for _ in range(3)])
    assert {a["node_id"] for a in answers} == {device.id}
    replies = sorted((a["reply"] for a in answers), key=lambda r: r["begun"])
    assert all(a["ended"] <= b["begun"] for a, b in itertools.pairwise(replies))
    sums = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert all(r["files"] == sums for r in replies)


def test_an_actor_on_a_node_without_the_labels_refuses(joined):
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from autocompress.cluster.device import _DeviceActor

    elsewhere = NodeAffinitySchedulingStrategy(joined.head_node.node_id, soft=False)
    remote = ray.remote(num_cpus=0)(_DeviceActor).options(scheduling_strategy=elsewhere)
    actor = remote.remote(LABELS, asking().evaluator.model_dump(mode="json"), 1.0)
    kind, message, _ = ray.get(actor.answer.remote({}, {}, {}, 10.0, "1"))
    assert kind == "measure"
    assert "expected a node labelled device=rpi5, got one labelled" in message
    ray.kill(actor)


def test_a_device_lost_while_it_answers_is_an_error_or_is_waited_for(device):
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, sleep=30.0)
        time.sleep(4.0)
        device.remove()
        with pytest.raises(MeasurementError, match=r"expected a living node labelled device=rpi5, .*; it was lost: "):
            asked.result()

        device.add()
        first = device.id
        asked = pool.submit(ask, wait=60.0, sleep=5.0)
        time.sleep(4.0)
        device.remove()
        device.add()
        assert asked.result().node_id == device.id != first


@pytest.fixture(scope="module")
def measured(joined, tmp_path_factory):
    """A study of which the device is taken away after its first trial, and the node that measured until then."""
    folder, nodes = tmp_path_factory.mktemp("study"), Nodes(joined)
    nodes.add()
    run = StudyRun(study(folder, "device", trials=3))
    with run.opened():
        run.prepare()
        run.profile()
        run.search()
        run.find_finalists()
    longer, node_id = study(folder, "taken", trials=6), nodes.id
    bench = prepare(longer)

    class Taking(Silent):
        def searched(self, state):
            if state.done >= 1 and nodes.node is not None:
                nodes.remove()

    with reporting_to(Taking()):
        taken = search_candidates(bench, profile(bench), lambda: None)
    assert nodes.node is None
    return run, node_id, bench, taken


def test_the_baseline_every_trial_and_every_finalist_are_read_by_the_device_alone(measured):
    run, node_id, _, _ = measured
    assert run.bench.prepared.baseline.host.node == "device=rpi5"
    trials = [t.measurement for t in run._trials if t.measurement]
    finals = [f.final for f in run.finals.finalists]
    assert [(t.state, t.reason) for t in run._trials] == [("complete", "")] * 3
    assert finals
    assert {m.node_id for m in (*trials, *finals)} == {node_id}
    assert {m.host.key for m in (*trials, *finals)} == {run.bench.prepared.baseline.host.key}


def test_the_time_of_each_node_is_from_the_device_too(measured):
    run = measured[0]
    assert run.profile().latency
    assert (run.bench.folder.root / "dense" / "example.npy").is_file(), "what was sent there"


def test_a_device_taken_away_fails_what_is_left_with_the_reason_and_nothing_is_read_elsewhere(measured):
    _, node_id, bench, trials = measured
    complete = [t for t in trials if t.state == "complete"]
    failed = [t for t in trials if t.state == "failed"]
    assert len(complete) + len(failed) == 6
    assert complete
    assert failed
    assert {t.measurement.node_id for t in complete} == {node_id}
    assert all("expected a living node labelled device=rpi5" in t.reason for t in failed)
    kept = list((bench.folder.root / "cache").glob("*.json"))
    assert 0 < len(kept) <= len(complete)


def test_a_study_goes_on_only_once_its_device_is_back(measured, device):
    _, _, bench, trials = measured
    longer = prepare(bench.study.model_copy(update={"search": more(bench.study, 7)}))
    again = search_candidates(longer, profile(longer), lambda: None)
    assert len(again) == 7
    assert again[-1].state == "complete"
    assert again[-1].measurement.node_id == device.id
    assert again[:6] == trials


def more(found, trials):
    return found.search.model_copy(update={"trials": trials})
