"""Files of reference statistics, as other programs write them, and as nobody should."""

import copyreg
import os
import pickle
import resource
import struct
import zipfile
import zlib
from collections import OrderedDict
from io import BytesIO

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate import stats_files
from ckptwatch.evaluate.stats_files import read_stats

D = 24
INCEPTION = {"network": "inception-v3-compat", "layer": "2048"}
DINO = {"network": "vit_large_patch14_dinov2.lvd142m", "layer": "cls"}


def moments(d=D, seed=0, shift=3.0):
    features = np.random.default_rng(seed).normal(shift, 1, size=(200, d))
    return features.mean(0), np.cov(features, rowvar=False)


MU, SIGMA = moments()


def read(path, dimension=D, network="inception-v3-compat", layer="2048"):
    mu, sigma = read_stats(path, network=network, layer=layer, dimension=dimension)
    return mu.numpy(), sigma.numpy()


def error_of(path, **how) -> EvaluationError:
    with pytest.raises(EvaluationError) as caught:
        read(path, **how)
    return caught.value


def refused(path, words, **how):
    error = error_of(path, **how)
    assert error.kind == "recipe" and not error.retryable and error.path == path
    assert words in str(error), str(error)
    assert f"mu ({how.get('dimension', D) or 'd'},)" in error.hint
    return error


def accepted(path, mu=MU, sigma=SIGMA, **how):
    found = read(path, **how)
    return all(f.dtype == np.float64 for f in found) and np.array_equal(found[0], mu) and np.array_equal(found[1], sigma)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "stats"


def dump(path, content, protocol=None):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def save_npz(path, *, compressed=False, **arrays):
    with path.open("wb") as out:
        (np.savez_compressed if compressed else np.savez)(out, **arrays)
    return path


# ---- what other programs write --------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_of_pytorch_fid_and_clean_fid(file, compressed):
    assert accepted(save_npz(file, mu=MU, sigma=SIGMA, compressed=compressed))
    assert accepted(save_npz(file, mu=MU, sigma=SIGMA, compressed=compressed), dimension=None)


def test_npz_of_guided_diffusion_whose_other_entries_are_not_read(file):
    """Its reference batches hold 50,000 images beside the statistics, and those of other features."""
    save_npz(file, mu=MU, sigma=SIGMA, mu_s=np.zeros(7), sigma_s=np.zeros((7, 7)), arr_0=np.ones((50, 8, 8, 3), np.uint8))
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        begin = archive.getinfo("arr_0.npy").header_offset
    content[begin + 40: begin + 400] = os.urandom(360)  # neither the header nor the numbers of it
    file.write_bytes(content)
    assert accepted(file)


def test_float32_and_fortran_order_and_big_endian(file):
    assert accepted(save_npz(file, mu=MU.astype("f4"), sigma=SIGMA.astype("f4")), MU.astype("f4"), SIGMA.astype("f4"))
    lopsided = np.asfortranarray(SIGMA + np.triu(np.full((D, D), 1e-9)))
    assert accepted(save_npz(file, mu=MU, sigma=lopsided), sigma=lopsided)
    assert accepted(save_npz(file, mu=MU.astype(">f8"), sigma=SIGMA.astype(">f8")))
    for protocol in range(2, 6):
        assert accepted(dump(file, {"mu": MU, "sigma": lopsided}, protocol), sigma=lopsided)
        dump(file, {"mu": MU.astype(">f8"), "sigma": SIGMA.astype(">f4")}, protocol)
        assert accepted(file, sigma=SIGMA.astype("f4"))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pkl_of_edm2_gives_each_network_its_own(file, protocol):
    other = moments(40, seed=1, shift=0)
    dump(file, {
        "num_images": 50_000, "fid": {"mu": MU, "sigma": SIGMA}, "fd_dinov2": {"mu": other[0], "sigma": other[1]},
    }, protocol)
    assert accepted(file, **INCEPTION)
    assert accepted(file, *other, dimension=40, **DINO)
    refused(file, "it has statistics for fid and fd_dinov2, none of vgg16", network="vgg16", layer="fc2_relu")


def test_pkl_of_edm2_without_the_wanted_network(file):
    dump(file, {"fid": {"mu": MU, "sigma": SIGMA}})
    refused(file, "it has statistics for fid, none of vit_large_patch14_dinov2.lvd142m", **DINO)
    dump(file, {"fd_dinov2": {"mu": MU, "sigma": SIGMA}})
    refused(file, "it has statistics for fd_dinov2, none of inception-v3-compat")


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_pkl_and_what_lies_beside(file, protocol):
    beside = {"n": 5, "scale": np.float32(2), "names": ["a", ("b", None, {"c"})], "deep": {"er": {"and": {"deeper": 1}}}}
    assert accepted(dump(file, {"mu": MU, "sigma": SIGMA, **beside}, protocol))
    assert accepted(dump(file, OrderedDict(mu=MU, sigma=SIGMA), protocol))


def test_pkl_of_numpy_1_and_of_numpy_2(file):
    content = pickle.dumps({"mu": MU, "sigma": SIGMA}, 2)
    assert b"numpy._core.multiarray" in content
    file.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert accepted(file)
    content = pickle.dumps({"mu": MU, "sigma": SIGMA}, 5)
    before, after = b"\x8c\x13numpy._core.numeric", b"\x8c\x12numpy.core.numeric"
    assert before in content
    frame = int.from_bytes(content[3:11], "little")
    head = content[:3] + (frame - 1).to_bytes(8, "little")  # the first frame is one byte shorter
    file.write_bytes(head + content[11:].replace(before, after))
    assert accepted(file)


def test_what_a_file_is_is_told_by_its_content_not_by_its_name(tmp_path):
    assert accepted(dump(tmp_path / "stats.npz", {"mu": MU, "sigma": SIGMA}))
    assert accepted(save_npz(tmp_path / "stats.pkl", mu=MU, sigma=SIGMA))


# ---- of another network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["network", "extractor", "feature_extractor", "model"])
@pytest.mark.parametrize("as_array", [True, False])
def test_a_file_that_says_what_network_it_is_of_must_be_of_this_one(file, key, as_array):
    def write(said):
        if as_array:
            return save_npz(file, mu=MU, sigma=SIGMA, **{key: np.array(said)})
        return dump(file, {"mu": MU, "sigma": SIGMA, key: said})

    for said in ("inception-v3-compat", "InceptionV3", "inception_v3", "pt_inception-2015-12-05", "Inception"):
        assert accepted(write(said))
    for said in ("dinov2_vitl14", "vgg16", "inception_resnet_v2", "clip-vit-b-32"):
        refused(write(said), f"its {key!r} says that it is of {said!r}, wanted is inception-v3-compat")
    assert accepted(write("dinov2_vitl14"), **DINO)
    assert accepted(write("clip_vit_b_32"), network="clip-vit-b-32", layer="clip")


def test_names_that_are_no_text_say_nothing(file):
    for said in (np.array(7), np.array(["a", "b"]), np.array("x" * 5000), np.array("")):
        assert accepted(save_npz(file, mu=MU, sigma=SIGMA, model=said))
    assert accepted(save_npz(file, mu=MU, sigma=SIGMA, network=np.bytes_(b"inception")))
    refused(save_npz(file, mu=MU, sigma=SIGMA, network=np.bytes_(b"vgg\xff")), "wanted is inception-v3-compat")


@pytest.mark.parametrize(("network", "layer"), [
    *(("inception-v3-compat", layer) for layer in ("64", "192", "768", "2048")), ("vgg16", "fc2_relu"),
])
def test_a_mean_below_zero_is_not_of_a_layer_that_never_is(file, network, layer):
    """Averages of ReLU outputs. The usual mistake has no other sign: CLIP-ViT-L and Inception's 768 have one length."""
    mu = MU.copy()
    mu[5] = -0.01
    save_npz(file, mu=mu, sigma=SIGMA)
    refused(file, f"its mean goes down to -0.01, while {network}/{layer} is never negative", network=network, layer=layer)
    assert accepted(file, mu, network="inception-v3-compat", layer="logits_unbiased")
    mu[5] = -1e-9  # rounding
    assert accepted(save_npz(file, mu=mu, sigma=SIGMA), mu, network=network, layer=layer)


def test_dimensions_decide_before_anything_large_is_read(file):
    save_npz(file, mu=np.zeros(2048), sigma=np.eye(2048, dtype="f4"), compressed=True)
    refused(file, f"mu has 2048 values, the network gives {D} (inception-v3-compat/2048)")
    dump(file, {"mu": np.zeros(25), "sigma": np.eye(25)})
    refused(file, "mu has 25 values")


# ---- no mean and covariance -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arrays", "words"), [
    ({"mu": MU, "sigma": np.eye(D + 1)}, "mu has shape (24,), sigma (25, 25)"),
    ({"mu": MU[None], "sigma": SIGMA}, "mu has shape (1, 24)"),
    ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "mu has shape (0,)"),
    ({"mu": np.array(1.0), "sigma": SIGMA}, "mu has shape ()"),
    ({"mu": np.full(D, np.nan), "sigma": SIGMA}, "NaN or Inf"),
    ({"mu": MU, "sigma": np.full((D, D), np.inf)}, "NaN or Inf"),
    ({"mu": MU, "sigma": np.triu(np.ones((D, D)))}, "not symmetric"),
    ({"mu": MU, "sigma": -np.eye(D)}, "negative eigenvalue"),
    ({"mu": np.array(["a"] * D), "sigma": SIGMA}, "wanted real numbers"),
    ({"mu": MU.astype(complex), "sigma": SIGMA}, "wanted real numbers"),
    ({"mu": MU}, "no sigma in it; found: mu"),
    ({"arr_0": MU}, "no mu and no sigma in it; found: arr_0"),
    ({"mu": np.array([None] * D), "sigma": SIGMA}, "mu is object"),  # would need unpickling
])
@pytest.mark.parametrize("kind", ["npz", "pkl"])
def test_wrong_statistics_say_what_is_wrong_and_what_is_needed(file, arrays, words, kind):
    save_npz(file, **arrays) if kind == "npz" else dump(file, arrays)
    refused(file, words)


def test_a_flat_set_has_statistics(file):
    """All reference images alike: sigma is zero."""
    assert accepted(save_npz(file, mu=MU, sigma=np.zeros((D, D))), sigma=np.zeros((D, D)))


# ---- hostile and broken files ---------------------------------------------------------------------------------------


def test_missing_and_unreadable_files_may_come_back(tmp_path):
    error = error_of(tmp_path / "gone.npz")
    assert error.kind == "recipe" and error.retryable and "no such file" in str(error) and "disk mounted" in error.hint


def test_directories_pipes_and_devices_are_no_files(tmp_path):
    refused(tmp_path, "it is a directory")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "it is no plain file")  # and nobody waits for its other end


@pytest.mark.parametrize(("content", "words"), [
    (b"", "an empty file"), (b"hello", "some other file"), (b"PK\x03\x04 not really", "zip directory"),
    (b"\x80\x04", "cut off"), (b"\x80\x04N.", "something else than a dict"), (b"(dp0\n.", "some other file"),
    (b"PK\x05\x06" + bytes(18), "empty zip"),
])
def test_files_of_other_kinds_are_told(file, content, words):
    file.write_bytes(content)
    refused(file, words)
    np.save(file.with_suffix(".npy"), MU)
    refused(file.with_suffix(".npy"), "a single array")


@pytest.mark.parametrize("compressed", [False, True])
def test_every_truncated_file_is_refused(file, compressed):
    for whole in (save_npz(file, mu=MU, sigma=SIGMA, compressed=compressed), dump(file, {"mu": MU, "sigma": SIGMA})):
        content = whole.read_bytes()
        for length in range(0, len(content), 97):
            file.write_bytes(content[:length])
            assert not error_of(file).retryable


class Bomb:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.system, (f"touch {self.place}",)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_nothing_in_a_pickle_is_executed(file, protocol):
    place = file.with_name("executed")
    for content in ({"mu": MU, "sigma": SIGMA, "extra": Bomb(place)}, Bomb(place), {"fid": {"mu": Bomb(place)}}):
        dump(file, content, protocol)
        assert "system, which is not loaded" in str(refused(file, "only numpy arrays and plain containers are"))
        assert not place.exists()
    pickle.loads(file.read_bytes())
    assert place.exists()  # the bomb is a real one


def test_nothing_in_an_npz_is_executed(file):
    place = file.with_name("executed")
    save_npz(file, mu=np.array([Bomb(place)] * D), sigma=SIGMA)
    refused(file, "mu is object")
    save_npz(file, mu=MU, sigma=SIGMA, network=np.array([Bomb(place)]))
    assert accepted(file)  # what is not asked for is not read
    assert not place.exists()


@pytest.mark.parametrize("named", [
    ("builtins", "eval"), ("builtins", "getattr"), ("numpy", "load"), ("numpy.core.multiarray", "fromfile"),
    ("numpy._core.multiarray", "_reconstruct.__globals__"), ("copyreg", "_reconstructor"), ("torch", "load"),
    ("numpyXcore.multiarray", "_reconstruct"), ("numpy.lib.format", "read_array"),
])
def test_only_the_names_that_arrays_need_are_known(file, named):
    module, name = (part.encode() for part in named)
    for content in (b"\x80\x02c" + module + b"\n" + name + b"\n.",
                    b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93."):
        file.write_bytes(content)
        refused(file, "which is not loaded")


def test_a_pickle_changes_nothing_of_the_program(file):
    """BUILD sets attributes of whatever a pickle can name."""
    for named in (b"numpy._core.multiarray\n_reconstruct", b"numpy\ndtype", b"numpy\nndarray", b"collections\nOrderedDict"):
        for state in (b"}X\x08\x00\x00\x00__call__K\x01s", b"N}X\x08\x00\x00\x00__call__K\x01s\x86"):
            file.write_bytes(b"\x80\x02c" + named + b"\n" + state + b"b.")
            error_of(file)
    assert accepted(dump(file, {"mu": MU, "sigma": SIGMA}, 2))


def array_pickle(shape: bytes, data: bytes = b"C\x08" + bytes(8), code: bytes = b"f8") -> bytes:
    """{'mu': array, 'sigma': array} with one shape, pickled by hand."""
    array = (b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01" + shape
             + b"cnumpy\ndtype\nX\x02\x00\x00\x00" + code + b"K\x00K\x01\x87R(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xff"
             b"J\xff\xff\xff\xffK\x00tb\x89" + data + b"tb")
    return b"\x80\x03}(X\x02\x00\x00\x00mu" + array + b"X\x05\x00\x00\x00sigma" + array + b"u."


@pytest.fixture
def bounded():
    """No more than 300 MB beyond what the process has: allocating what a hostile file asks for fails the test."""
    with open("/proc/self/statm") as statm:  # noqa: PTH123 - it is no real file
        pages = int(statm.read().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 300_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


HUGE = b"\x8a\x06\x00\x00\x00\x00\x00\x01"  # 2^40


@pytest.mark.parametrize(("content", "words"), [
    (array_pickle(HUGE + b"\x85"), "impossible shape"),
    (array_pickle(b"J\x00\x00\x00\x40\x85"), "mu has shape"),
    (array_pickle(b"J\xff\xff\xff\xff\x85"), "impossible shape"),
    (array_pickle(b"K\x18\x85"), "mu has shape (24,), sigma (24,)"),
    (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "cut off"),           # bytes that are not there
    (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.", "cut off"),           # a bytearray, likewise
    (b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.", "a frame reaches past the end"),
    (b"\x80\x04Nr\xff\xff\xff\x7f.", "numbers more values"),                   # the memo would get 2^31 places
    (b"\x80\x04Np99999999\n.", "numbers more values"),
    (b"\x80\x02" + b"N0" * 10_000 + b".", "opcodes"),
    (b"\x80\x04" + b"]" + b"\x85" * 4000 + b"}\x86\x85N\x86.", "something else than a dict"),
    (b"\x80\x02X\x01\x00\x00\x00aQ.", "outside of it"),
    (b"\x80\x02\x82\x01.", "outside of it"),
    (b"\x80\x05\x97.", "broken pickle"),
    (b"\x80\x02N.more", "ends at byte"),
    (b"\x80\x02cnumpy\ndtype\n)R.", "broken pickle"),
])
def test_a_pickle_cannot_ask_for_more_than_it_has(file, content, words, bounded):
    file.write_bytes(content)
    refused(file, words)


def test_repeated_parts_of_a_pickle_take_no_memory(file, bounded):
    """A text of 20 MB that is encoded 400 times, as protocol 2 writes bytes: done when asked, 8 GB."""
    text = b"a" * 20_000_000
    again = b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R0"
    begin = b"\x80\x02X" + struct.pack("<I", len(text)) + text + b"q\x000c_codecs\nencode\nq\x010"
    file.write_bytes(begin + again * 400 + b"}.")
    refused(file, "no mu and no sigma")


def test_a_pickle_larger_than_any_statistics_is_not_read(file):
    with file.open("wb") as out:
        out.write(b"\x80\x04")
        out.truncate(3 << 30)  # sparse
    refused(file, "more than statistics of any network take")


def member(header: bytes, payload: bytes = b"", *, magic: bytes = b"\x93NUMPY\x01\x00") -> bytes:
    return magic + struct.pack("<H", len(header)) + header + payload


def described(shape: str, descr: str = "'<f8'") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()


@pytest.mark.parametrize(("mu", "words"), [
    (member(described("(1000000000000,)")), "mu has shape (1000000000000,)"),
    (member(described("(-1,)")), "mu has shape (-1,)"),
    (member(described("(24,)")), "mu.npy does not hold the 192 bytes"),
    (member(described("(24,)"), bytes(193)), "mu.npy does not hold the 192 bytes"),
    (member(described("(24,)", "'|O'"), pickle.dumps(1)), "mu is object"),
    (member(described("(24,)", "[('a', '<f8')]"), bytes(192)), "wanted real numbers"),
    (member(described("(24,)", "'<f999'"), bytes(192)), "broken header"),
    (member(b"{'descr': __import__('os').system('touch executed')}\n"), "broken header"),
    (member(b"(" * 3000 + b"\n"), "broken header"),
    (b"", "broken header"),
    (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{", "no plain array"),
    (b"\x93NUMPY\x03\x00" + struct.pack("<I", 2**31) + b"{", "no plain array"),
    (b"not numpy at all", "broken header"),
])
def test_an_array_of_an_npz_cannot_ask_for_more_than_it_has(file, mu, words, bounded):
    sigma = BytesIO()
    np.save(sigma, SIGMA)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("mu.npy", mu)
        archive.writestr("sigma.npy", sigma.getvalue())
    refused(file, words)


def test_a_covariance_of_a_network_that_does_not_exist_is_not_read(file, bounded):
    """Well-formed, and 3 GB large: zeros pack well."""
    n = 20_000
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mu.npy", member(described(f"({n},)"), bytes(8 * n)))
        with archive.open("sigma.npy", "w", force_zip64=True) as out:
            out.write(member(described(f"({n}, {n})")))
            for _ in range(32):
                out.write(bytes(1_000_000))
    refused(file, "more than any network gives", dimension=None)


def test_a_zip_bomb_is_not_unpacked(file, bounded):
    """The directory says little, the data unpack to 4 GB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(400)) + packer.flush()
    head = member(described("(24,)"), MU.tobytes())
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mu.npy", head)
        archive.writestr("sigma.npy", bytes(len(bomb)))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("mu.npy", head)
        archive.writestr("sigma.npy", bomb)
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        info, start = archive.getinfo("sigma.npy"), archive.start_dir
    content[info.header_offset + 8: info.header_offset + 10] = b"\x08\x00"
    entry = content.index(b"sigma.npy", start) - 46
    content[entry + 10: entry + 12] = b"\x08\x00"
    file.write_bytes(content)
    refused(file, "broken header")


@pytest.mark.parametrize("kind", ["npz", "compressed", "pkl", "pkl2"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_give_errors_not_crashes(tmp_path, kind, data):
    path = tmp_path / "stats"
    mu, sigma = MU[:3], SIGMA[:3, :3]
    if kind.startswith("pkl"):
        dump(path, {"fid": {"mu": mu, "sigma": sigma}, "num_images": 7}, 2 if kind == "pkl2" else 4)
    else:
        save_npz(path, mu=mu, sigma=sigma, network=np.array("inception"), compressed=kind == "compressed")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = read(path, dimension=3)
        assert found[0].shape == (3,) and found[1].shape == (3, 3) and np.isfinite(found[0]).all()
    except EvaluationError as error:
        assert error.kind == "recipe"


def test_extension_codes_registered_by_others_do_not_matter(file):
    copyreg.add_extension("posix", "system", 240)
    try:
        place = file.with_name("executed")
        dump(file, {"mu": MU, "sigma": SIGMA, "extra": Bomb(place)}, 2)
        refused(file, "outside of it")
        assert not place.exists()
    finally:
        copyreg.remove_extension("posix", "system", 240)


def test_the_limits_let_real_networks_through():
    assert stats_files.LARGEST >= 4096  # fc2 of VGG-16
