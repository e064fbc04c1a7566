"""What is read of TensorBoard's event files: every scalar once, nothing of what is damaged, little of what is large."""

import io
import math
import subprocess
import sys
import tracemalloc
from pathlib import PurePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter

from ckptwatch.core.series import LogRow
from ckptwatch.logs.events import LONGEST, OURS, WHOLE, TensorBoardEvents
from ckptwatch.logs.records import FOOTER, HEADER, masked_crc
from ckptwatch.model import Logged

FIRST = Event(wall_time=1.0, file_version="brain.Event:2")


def value(tag, number):
    return Summary.Value(tag=tag, simple_value=number)


def tensor(tag, plugin="scalars", **content):
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin)) if plugin else None
    return Summary.Value(tag=tag, tensor=TensorProto(**content), metadata=metadata)


def event(step, *values, at=100.0):
    return Event(wall_time=at, step=step, summary=Summary(value=values))


def framed(*events):
    """As TensorBoard's own writer frames them."""
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for one in events:
        writer.write(one if isinstance(one, bytes) else one.SerializeToString())
    return buffer.getvalue()


def file_of(*events):
    return framed(FIRST, *events)


def read(data, logged=Logged()):
    return TensorBoardEvents().reader(logged).feed(data)


def values_of(fed):
    return [(row.step, name, v) for row in fed.rows for name, v in row.values.items()]


HISTORY = [event(10, value("loss", 0.5), at=3.0), event(10, value("epoch", 0.0)), event(20, value("loss", 0.25)),
           event(20, value("epoch", 1.0)), event(20, value("val/abs_rel", 0.125)), event(20, value("epoch", 1.0))]


# ---- what is taken for a log ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "head", "ours"), [
    ("events.out.tfevents.1700000000.host.1.0", file_of(*HISTORY)[:4096], True),
    ("tb/version_0/events.out.tfevents.1", b"", True),
    ("events.out.tfevents.1", file_of()[:7], True),
    ("events.out.tfevents.1", file_of()[:20], True),
    ("events.out.tfevents.1.gz", b"\x1f\x8b" + bytes(300), False),
    ("events.out.tfevents.1", framed(event(1, value("loss", 1.0))), False),
    ("notes-on-tfevents.txt", b"the files events.out.tfevents.* are those of the first attempt", False),
    ("train.log", file_of(), False),
    (f"events.out.tfevents.0000000001{OURS}", file_of(), False),
])
def test_event_files_are_known_by_name_and_first_record(name, head, ours):
    assert TensorBoardEvents().claims(PurePath(name), head) is ours


def test_our_own_event_files_are_never_taken_for_the_trainers(tmp_path):
    from ckptwatch.publish.scalars import Point, Scalars

    scalars = Scalars(tmp_path)
    assert scalars.reconcile([Point(tag="Evaluation/FID", step=1, value=2.0, wall_time=3.0)]) == 1
    scalars.close()
    (path,) = tmp_path.iterdir()
    assert read(path.read_bytes()).rows
    assert not TensorBoardEvents().claims(PurePath(path.name), path.read_bytes()[:4096])


# ---- what is read ---------------------------------------------------------------------------------------------------


def test_scalars_are_read_with_step_and_time():
    fed = read(file_of(event(7, value("loss", 0.5), at=1234.5)))
    assert fed.rows == [LogRow(step=7, values={"loss": 0.5}, at=1234.5)]
    assert (fed.bad, fed.trouble) == (0, "")


@pytest.mark.parametrize(("content", "expected"), [
    ({"dtype": "DT_FLOAT", "float_val": [0.5]}, 0.5),
    ({"dtype": "DT_DOUBLE", "double_val": [0.1]}, 0.1),
    ({"dtype": "DT_INT32", "int_val": [-3]}, -3.0),
    ({"dtype": "DT_INT64", "int64_val": [1 << 40]}, float(1 << 40)),
    ({"dtype": "DT_FLOAT", "tensor_content": b"\0\0\0\x3f"}, 0.5),
    ({"dtype": "DT_DOUBLE", "tensor_content": b"\0\0\0\0\0\0\xe0\x3f"}, 0.5),
    ({"dtype": "DT_HALF", "half_val": [0x3800]}, 0.5),
    ({"dtype": "DT_BFLOAT16", "half_val": [0x3F00]}, 0.5),
    ({"dtype": "DT_BFLOAT16", "tensor_content": b"\0\x3f"}, 0.5),
    ({"dtype": "DT_FLOAT"}, 0.0),
])
@pytest.mark.parametrize("plugin", ["scalars", ""])
def test_scalars_stored_as_tensors_are_read(content, expected, plugin):
    assert values_of(read(file_of(event(1, tensor("loss", plugin, **content))))) == [(1, "loss", expected)]


@pytest.mark.parametrize("other", [
    tensor("text", "text", dtype="DT_STRING", string_val=[b"hello"]),
    tensor("plain text", "", dtype="DT_STRING", string_val=[b"hello"]),
    tensor("histogram", "histograms", dtype="DT_DOUBLE", double_val=[1.0],
           tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])),
    tensor("vector", dtype="DT_FLOAT", float_val=[1.0, 2.0],
           tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=2)])),
    tensor("hparams", "hparams", dtype="DT_FLOAT", float_val=[0.0]),
    tensor("short", dtype="DT_DOUBLE", tensor_content=b"\0"),
    tensor("complex", dtype="DT_COMPLEX64", scomplex_val=[1.0, 2.0]),
    Summary.Value(tag="picture", image=Summary.Image(encoded_image_string=b"png")),
    Summary.Value(tag="sound", audio=Summary.Audio(encoded_audio_string=b"wav")),
], ids=lambda v: v.tag)
def test_what_is_no_scalar_is_passed_over(other):
    fed = read(file_of(event(1, other), event(2, value("loss", 0.5))))
    assert values_of(fed) == [(2, "loss", 0.5)]
    assert fed.bad == 0


def test_graphs_and_restarts_are_passed_over():
    fed = read(file_of(Event(graph_def=b"graph"), event(1, value("loss", 0.5)),
                       Event(step=1, session_log=SessionLog(status=SessionLog.START)), event(1, value("loss", 0.25))))
    assert values_of(fed) == [(1, "loss", 0.5), (1, "loss", 0.25)]


def test_zero_nan_and_infinity_are_values():
    fed = read(file_of(event(1, value("a", 0.0)), event(2, value("a", math.nan)), event(3, value("a", -math.inf))))
    (zero, nan, infinite) = [v for _, _, v in values_of(fed)]
    assert zero == 0.0
    assert math.isnan(nan)
    assert infinite == -math.inf


def test_a_scalar_called_epoch_is_the_epoch_of_its_step():
    rows = read(file_of(*HISTORY)).rows
    assert rows == [LogRow(step=10, epoch=0.0, values={"loss": 0.5}, at=3.0),
                    LogRow(step=20, epoch=1.0, values={"loss": 0.25}, at=100.0),
                    LogRow(step=20, epoch=1.0, values={"val/abs_rel": 0.125}, at=100.0)]


def test_values_of_two_epochs_at_one_step_are_told_apart():
    rows = read(file_of(event(9, value("val_loss", 1.0)), event(9, value("epoch", 0.0)), event(9, value("val_loss", 2.0)),
                        event(9, value("epoch", 1.0)))).rows
    assert [(r.epoch, r.values) for r in rows] == [(0.0, {"val_loss": 1.0}), (1.0, {"val_loss": 2.0})]


def test_an_epoch_told_first_holds_for_its_step_and_no_other():
    reader = TensorBoardEvents().reader(Logged())
    before = reader.feed(file_of(event(4, value("train/epoch", 0.5)))).rows
    reader = TensorBoardEvents().reader(Logged(), reader.state())
    after = reader.feed(framed(event(4, value("loss", 1.0)), event(5, value("loss", 2.0)))).rows
    assert [(r.step, r.epoch, r.values) for r in [*before, *after]] == [(4, 0.5, {"loss": 1.0}), (5, None, {"loss": 2.0})]


def test_steps_can_be_said_to_count_epochs():
    fed = read(file_of(event(3, value("val/abs_rel", 0.125))), Logged(epoch="step"))
    assert fed.rows == [LogRow(epoch=3.0, values={"val/abs_rel": 0.125}, at=100.0)]


def test_tags_can_be_named_that_hold_step_and_epoch():
    fed = read(file_of(event(3, value("loss", 0.5), value("samples", 640.0), value("pass", 2.0))),
               Logged(step="samples", epoch="pass"))
    assert fed.rows == [LogRow(step=640, epoch=2.0, values={"loss": 0.5}, at=100.0)]


# ---- how it grows ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(file_of(*HISTORY))), max_size=6))
def test_however_a_file_is_cut_into_pieces_every_value_is_read_once(cuts):
    data, reader = file_of(*HISTORY), TensorBoardEvents().reader(Logged())
    found, consumed = [], 0
    for end in [*sorted(cuts), len(data)]:
        fed = reader.feed(data[consumed:end])
        consumed += fed.consumed
        found += values_of(fed)
        assert fed.bad == 0
        reader = TensorBoardEvents().reader(Logged(), reader.state())
    assert consumed == len(data)
    assert found == values_of(read(data))


def test_half_a_record_comes_again():
    data = file_of(event(1, value("loss", 0.5)))
    first = len(file_of())
    assert [read(data[:end]).consumed for end in (first - 1, first, first + 5, len(data) - 1)] == [0, first, first, first]


def test_a_large_record_is_passed_over_piece_by_piece_without_being_held():
    picture = event(1, Summary.Value(tag="picture", image=Summary.Image(encoded_image_string=bytes(8 * WHOLE))))
    data = file_of(picture, event(2, value("loss", 0.5)))
    pieces = [data[i:i + 65536] for i in range(0, len(data), 65536)]
    reader, found, consumed = TensorBoardEvents().reader(Logged()), [], 0
    rest = b""
    tracemalloc.start()
    for piece in pieces:
        fed = reader.feed(rest + piece)
        rest = (rest + piece)[fed.consumed:]
        found += values_of(fed)
        consumed += fed.consumed
        reader = TensorBoardEvents().reader(Logged(), reader.state())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(2, "loss", 0.5)]
    assert consumed == len(data)
    assert peak < 1 << 20


# ---- what is damaged ------------------------------------------------------------------------------------------------


def test_a_record_whose_data_changed_is_left_out_and_those_after_it_are_read():
    good = file_of(event(1, value("loss", 0.5)))
    data = bytearray(good + framed(event(2, value("loss", 0.25))))
    data[len(good) - FOOTER - 2] ^= 0x10  # in the number itself
    fed = read(bytes(data))
    assert values_of(fed) == [(2, "loss", 0.25)]
    assert (fed.bad, fed.trouble, fed.consumed) == (1, "a record has the wrong checksum", len(data))


def test_a_record_that_is_no_event_is_left_out():
    fed = read(file_of(b"\xff" * 40, event(2, value("loss", 0.25))))
    assert values_of(fed) == [(2, "loss", 0.25)]
    assert (fed.bad, fed.trouble) == (1, "a record that is no event")


def test_after_a_wrong_length_the_rest_is_given_up_once_and_for_good():
    good = file_of(event(1, value("loss", 0.5)))
    reader = TensorBoardEvents().reader(Logged())
    fed = reader.feed(good + bytes(200))
    assert values_of(fed) == [(1, "loss", 0.5)]
    assert (fed.bad, fed.consumed) == (1, len(good) + 200)
    assert "the rest of the file is not read" in fed.trouble
    again = TensorBoardEvents().reader(Logged(), reader.state()).feed(framed(event(2, value("loss", 0.25))))
    assert (again.rows, again.bad, again.trouble) == ([], 0, fed.trouble)


def test_a_hostile_length_is_no_reason_to_wait_for_it():
    length = (LONGEST + 1).to_bytes(8, "little")
    data = file_of() + length + masked_crc(length).to_bytes(4, "little")
    fed = read(data)
    assert (fed.bad, fed.consumed) == (1, len(data))
    assert f"{LONGEST + 1:,} bytes" in fed.trouble


def test_names_that_cannot_be_shown_are_counted_and_left_out():
    fed = read(file_of(event(1, value("a\0b", 1.0), value("x" * 500, 2.0), value("loss", 0.5))))
    assert values_of(fed) == [(1, "loss", 0.5)]
    assert (fed.bad, fed.trouble) == (1, "a scalar whose name cannot be shown")


def test_a_step_below_zero_and_a_time_that_is_none_are_not_known():
    fed = read(file_of(event(-1, value("loss", 0.5), at=math.nan)))
    assert fed.rows == [LogRow(values={"loss": 0.5})]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200), st.booleans())
def test_nothing_that_bytes_say_raises(junk, at, framed_right):
    data = file_of(*HISTORY)
    hostile = data[:at] + (framed(junk) if framed_right else junk) + data[at:]
    fed = read(hostile)
    assert 0 <= fed.consumed <= len(hostile)
    assert isinstance(TensorBoardEvents().claims(PurePath("tfevents"), hostile[:4096]), bool)


@given(st.binary(max_size=64))
def test_the_checksum_is_that_of_tensorboard(data):
    assert masked_crc(data) == masked_crc32c(data)


def test_reading_loads_neither_torch_nor_tensorflow_nor_numpy(tmp_path):
    (tmp_path / "events").write_bytes(file_of(*HISTORY))
    program = (
        "import sys; from pathlib import Path; from ckptwatch.logs.events import TensorBoardEvents as T\n"
        "from ckptwatch.model import Logged\n"
        "assert 'tensorboard' not in sys.modules\n"
        f"print(len(T().reader(Logged()).feed(Path({str(tmp_path / 'events')!r}).read_bytes()).rows))\n"
        "print([m for m in ('torch', 'tensorflow', 'numpy') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["3", "[]"]


def test_header_and_footer_are_those_of_the_writer():
    assert len(framed(b"12345")) == HEADER + 5 + FOOTER
