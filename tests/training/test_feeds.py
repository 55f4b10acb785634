"""The resident and the streaming pipeline: equal chunks to the bit, however they are cut."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import cycle
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_keras3.data.augment import augmented as augmented_batches
from fmnist_keras3.data.augment import parse_augment
from fmnist_keras3.data.dataset import Split
from fmnist_keras3.data.plan import epoch_plan, evaluation_plan
from fmnist_keras3.data.source import Rows
from fmnist_keras3.engines import make_engine
from fmnist_keras3.engines.chunk import Device
from fmnist_keras3.engines.world import World, part_of
from fmnist_keras3.training.arguments import batches_in_epoch
from fmnist_keras3.training.feeds import ResidentFeed, StreamFeed

CHUNK, BATCH, EXAMPLES = 3, 8, 50  # 7 steps, the last with 2 examples
AUGMENT = parse_augment("altflip,crop:3,rotate,cutmix,erase:0.7")


@pytest.fixture(scope="module")
def engine():
    inputs = keras.Input((28, 28, 1))
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return make_engine(model, chunk_steps=CHUNK)


@pytest.fixture(scope="module")
def split(tiny_data):
    return Split(tiny_data[0][:EXAMPLES], tiny_data[1][:EXAMPLES])


@pytest.fixture(scope="module")
def feeds(engine, split):
    """By name, both pipelines with and without augmentation; programs are compiled once."""
    made = {
        (cls.__name__, bool(augment)): cls(split, engine, augment)
        for cls in (ResidentFeed, StreamFeed)
        for augment in (AUGMENT, ())
    }
    yield made
    for feed in made.values():
        feed.close()


@pytest.mark.parametrize("group", [1, 2, 16])
def test_how_tf_data_groups_steps_does_not_matter(feeds, monkeypatch, group):
    monkeypatch.setattr("fmnist_keras3.training.feeds.GROUP_STEPS", group)
    plan = plan_of(AUGMENT)
    for start, counts in ((0, (3, 1, 3)), (2, (2, 3)), (6, (1,))):
        resident = taken(feeds["ResidentFeed", True], plan, counts, start)
        check_equal(taken(feeds["StreamFeed", True], plan, counts, start), resident)


def test_a_device_of_its_own_gathers_the_same(engine, split, monkeypatch):
    """Where the device is not the host's CPU, the split lies there and is gathered there."""
    for augment in (AUGMENT, ()):
        plan = plan_of(augment)
        on_host = taken(ResidentFeed(split, engine, augment), plan, (3, 3, 1))
        with monkeypatch.context() as patched:
            patched.setattr(engine, "device", replace(engine.device, kind="gpu"))
            feed = ResidentFeed(split, engine, augment)
            check_equal(taken(feed, plan, (3, 3, 1)), on_host)


class HostEngine:
    """An engine as far as a feed needs one: arrays stay where they are.

    Of the process ``rank`` of those that devices belong to (``owners``).
    """

    device = Device("cpu", "a processor")
    world, model = World(), None

    def __init__(self, chunk_steps, fills=True, owners=(0,), rank=0):
        self.chunk_steps, self._owners, self._rank = chunk_steps, owners, rank
        self.step = SimpleNamespace(fills_evaluation=fills, fills_training=fills)

    def part(self, size):
        return part_of(size, self._owners, self._rank)

    def place(self, tree, batch_axis=None, size=None):
        return tree

    def first(self, tree, count):
        return tree  # which is but a part here; so a batch in its true size looks like a filled one


# Of each device the process it belongs to, of 1 to 4 with 1 to 3 devices, in any order.
owners = st.tuples(st.integers(1, 4), st.integers(1, 3)).flatmap(
    lambda sizes: st.permutations([*range(sizes[0])] * sizes[1])
)


@settings(deadline=None, derandomize=True)
@given(
    examples=st.integers(1, 60),
    batch_size=st.integers(1, 24),
    last_batch=st.sampled_from(["keep", "fill", "drop"]),
    epoch=st.integers(0, 3),
    stop=st.integers(0, 60),
    chunks=st.lists(st.integers(1, 5), min_size=1),
    before=owners,
    after=owners,
)
def test_each_example_once_on_any_devices_of_any_processes_wherever_it_was_stopped(
    examples, batch_size, last_batch, epoch, stop, chunks, before, after
):
    """What was taken before a stop and what others give after it make the epoch.

    Of each batch each process reads what its devices take, and together they have the batch.
    """
    split = Split(np.arange(examples).reshape(-1, 1), np.arange(examples))
    steps = batches_in_epoch(examples, batch_size, last_batch)
    sizes = {"examples": examples, "batch_size": batch_size, "limit": steps}
    plan, fills = epoch_plan(0, epoch, **sizes), last_batch == "fill"
    seen, step = [], 0
    for end, devices in ((min(stop, steps), before), (steps, after)):
        feeds = [
            ResidentFeed(split, HostEngine(max(chunks), fills, devices, rank), training=True)
            for rank in range(max(devices) + 1)
        ]
        for feed in feeds:
            feed.open(epoch_plan(0, epoch, **sizes), step)
        for count in cycle(chunks):
            count = min(count, end - step, feeds[0].ends_at(plan, step) - step)
            if not count:
                break
            parts = [feed.take(count) for feed in feeds]
            labels = together(parts, devices, batch_size)[:count]
            np.testing.assert_array_equal(labels, plan.indices[step : step + count])
            for batch, valid in zip(labels, parts[0].valid[:count], strict=True):
                seen += batch[:valid].tolist()
            step += count
    # An epoch of less than a batch is not dropped.
    left_out = examples % batch_size if last_batch == "drop" and examples > batch_size else 0
    assert len(set(seen)) == len(seen) == examples - left_out


def together(parts, devices, batch_size):
    """The labels ``[K, B]`` of a chunk, of which each process has what its devices share."""
    each, rest = divmod(batch_size, len(devices))
    labels = np.full((len(parts[0].y), batch_size), -1)
    for rank, part in enumerate(parts):
        np.testing.assert_array_equal(part.x[..., 0], part.y)
        if rest:  # they cannot share it, so each has all
            mine = range(batch_size)
        else:
            mine = [i for i in range(batch_size) if devices[i // each] == rank]
            assert (labels[:, mine] == -1).all()
        labels[:, mine] = part.y
    return labels


class Recorded:
    """A source that keeps the numbers of the examples that it was asked for."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return EXAMPLES

    def gather(self, indices):
        self.read += indices.tolist()
        return np.zeros((len(indices), 2), np.float32), indices.astype(np.int32)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_reads_its_part_of_a_stream_alone(monkeypatch, rank):
    monkeypatch.setattr("fmnist_keras3.training.feeds.check_split", lambda *_: None)
    source = Recorded()
    likes = (np.zeros((1, 2), np.float32), np.zeros(1, np.int32))
    parts = [Rows(source, place, like, 12) for place, like in enumerate(likes)]
    feed = StreamFeed(Split(*parts), HostEngine(CHUNK, owners=(0, 0, 1, 1), rank=rank))
    plan = plan_of(())
    feed.open(plan, 1)
    taken = np.concatenate([chunk.y[: chunk.count] for chunk in map(feed.take, (3, 2, 1))])
    feed.close()
    mine = plan.indices[1:, 4 * rank : 4 * rank + 4]
    np.testing.assert_array_equal(taken, mine)
    assert sorted(source.read) == sorted(mine.ravel())


def plan_of(augment, epoch=0, **options):
    return epoch_plan(
        0,
        epoch,
        examples=EXAMPLES,
        batch_size=BATCH,
        image_shape=(28, 28, 1),
        augment=augment,
        **options,
    )


def taken(feed, plan, counts, start=0):
    """The batches that ``feed`` gives, one after the other: ``x, y, valid``, and what is mixed."""
    feed.open(plan, start)
    batches = []
    for count in counts:
        chunk = feed.take(count)
        assert chunk.count == count
        assert len(chunk.valid) == chunk.x.shape[0] == chunk.y.shape[0] == CHUNK
        x, y = np.asarray(chunk.x), np.asarray(chunk.y)
        assert (x.dtype, y.dtype, chunk.valid.dtype) == (np.uint8, np.int32, np.int32)
        more = [np.asarray(part) for part in chunk.mix or ()]
        batches += [(x[i], y[i], int(chunk.valid[i]), *(m[i] for m in more)) for i in range(count)]
    return batches


def check_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for (x, y, valid, *mix), (x2, y2, valid2, *mix2) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)
        assert valid == valid2
        for part, part2 in zip(mix, mix2, strict=True):
            np.testing.assert_allclose(part, part2, atol=1e-7)


@pytest.fixture(scope="module", params=[True, False], ids=["augmented", "plain"])
def augmented(request):
    return request.param


@pytest.fixture(scope="module")
def expected(split, augmented):
    """The batches of epoch 0, step by step, outside any pipeline."""
    plan = plan_of(AUGMENT if augmented else ())
    batches = []
    for step, indices in enumerate(plan.indices):
        x, y = split.x[indices], split.y[indices]
        more = ()
        if augmented:
            draws = {name: drawn[step, None] for name, drawn in plan.draws.items()}
            x = np.asarray(augmented_batches(dict(AUGMENT), x[None], draws))[0]
            top, bottom, left, right = plan.draws["cutmix"][step].T
            more = np.roll(y, 1), 1 - (bottom - top) * (right - left) / np.float32(28 * 28)
        batches.append((x, y, int(plan.valid[step]), *more))
    return batches


@pytest.mark.parametrize("cls", [ResidentFeed, StreamFeed])
class TestEveryFeed:
    @pytest.mark.parametrize(
        "counts",
        [(3, 3, 1), (1,) * 7, (2, 1, 3, 1), (1, 3, 3)],
        ids=lambda c: "-".join(map(str, c)),
    )
    def test_any_partition_gives_the_same_batches(self, feeds, expected, cls, augmented, counts):
        plan = plan_of(AUGMENT if augmented else ())
        check_equal(taken(feeds[cls.__name__, augmented], plan, counts), expected)

    @pytest.mark.parametrize("start", range(7))
    def test_from_any_step(self, feeds, expected, cls, augmented, start):
        plan = plan_of(AUGMENT if augmented else ())
        left = 7 - start
        counts = [min(CHUNK, left - at) for at in range(0, left, CHUNK)]
        check_equal(taken(feeds[cls.__name__, augmented], plan, counts, start), expected[start:])

    def test_a_new_plan_begins_anew(self, feeds, expected, cls, augmented):
        feed, augment = feeds[cls.__name__, augmented], AUGMENT if augmented else ()
        other = taken(feed, plan_of(augment, epoch=1), [2])
        assert not np.array_equal(other[0][0], expected[0][0])
        check_equal(taken(feed, plan_of(augment), [2]), expected[:2])

    def test_the_last_batch_repeats_its_own(self, feeds, cls, augmented):
        plan = plan_of(AUGMENT if augmented else ())
        ((x, y, valid, *_),) = taken(feeds[cls.__name__, augmented], plan, [1], start=6)
        assert valid == 2
        for i in range(2, BATCH):
            np.testing.assert_array_equal(x[i], x[i % 2])
            assert y[i] == y[i % 2]

    def test_all_batches_in_the_fewest_chunks(self, feeds, split, cls):
        chunks = list(feeds[cls.__name__, False].chunks(evaluation_plan(EXAMPLES, BATCH)))
        assert [chunk.count for chunk in chunks] == [3, 3, 1]
        x = np.concatenate(
            [np.asarray(c.x)[i, : c.valid[i]] for c in chunks for i in range(c.count)]
        )
        np.testing.assert_array_equal(x, split.x)

    def test_other_dtypes_pass_through(self, engine, cls):
        rng = np.random.default_rng(0)
        split = Split(rng.normal(size=(20, 5)).astype(np.float32), np.eye(20, dtype=np.float32))
        feed = cls(split, engine)
        feed.open(evaluation_plan(20, BATCH))
        chunk = feed.take(3)
        np.testing.assert_array_equal(np.asarray(chunk.x)[1], split.x[8:16])
        np.testing.assert_array_equal(np.asarray(chunk.y)[1], split.y[8:16])
        feed.close()


# What JAX trains with must not bring TensorFlow along: it would cost seconds and GPU memory.
SCRIPT = """
import sys
import numpy as np
from fmnist_keras3.models import build_model
from fmnist_keras3.data.augment import augmented as augmented_batches
from fmnist_keras3.data.augment import parse_augment
from fmnist_keras3.data.dataset import Split
from fmnist_keras3.training.feeds import ResidentFeed
from fmnist_keras3.data.plan import epoch_plan, evaluation_plan
from fmnist_keras3.engines import make_engine
from fmnist_keras3.engines.chunk import Device
from fmnist_keras3.engines.chunk import StepPlan

model = build_model("lenet", dropout=0.1)
engine = make_engine(model, chunk_steps=2)
split = Split(np.zeros((8, 28, 28, 1), np.uint8), np.zeros(8, np.int32))
augment = parse_augment("flip,crop,erase")
feed = ResidentFeed(split, engine, augment)
feed.open(epoch_plan(0, 0, examples=8, batch_size=4, image_shape=(28, 28, 1), augment=augment))
loss = engine.train(feed.take(2), StepPlan(np.full(2, 1e-3, np.float32))).loss
assert np.isfinite(loss).all()
engine.infer(ResidentFeed(split, engine).chunks(evaluation_plan(8, 4)))
engine.import_state(engine.export_state())
print([name for name in ("tensorflow", "torch") if name in sys.modules])
"""


def test_jax_with_resident_data_never_imports_tensorflow(backend):
    if backend != "jax":
        pytest.skip("about JAX only")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    assert json.loads(done.stdout.replace("'", '"')) == []
