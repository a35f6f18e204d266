"""Decoding: every odd kind of image as people expect it, every bad one with its reason."""

from __future__ import annotations

import io
import struct
import zlib

import encode_models as models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bliss_index.encode.decode import DecodeError, decode_image, to_rgb
from bliss_index.encode.preprocess import Preprocess
from bliss_index.errors import EncoderError, InvalidInputError

REASONS = {"empty", "unreadable_file", "unsupported_type", "too_large", "truncated", "corrupt"}


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(content, **options):
    image = decode_image(content, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture
def picture():
    return models.noise_image(0, (24, 16))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG", "JPEG2000"])
def test_common_formats(picture, kind):
    content = encoded(picture, kind, **({"lossless": True} if kind == "WEBP" else {}))
    difference = np.abs(pixels(content).astype(int) - np.asarray(picture))
    assert difference.mean() < (0.01 if kind in ("PNG", "BMP", "TIFF", "PPM", "WEBP") else 25)


def test_exif_orientation_is_applied(picture):
    for orientation, operation in [
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_270),
        (8, Image.Transpose.ROTATE_90),
    ]:
        exif = Image.Exif()
        exif[0x0112] = orientation
        expected = np.asarray(picture.transpose(operation))
        np.testing.assert_array_equal(pixels(encoded(picture, exif=exif)), expected)


def test_damaged_exif_is_ignored(picture):
    content = encoded(picture, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\x01\x02")
    assert pixels(content).shape == (16, 24, 3)


def test_transparency_is_laid_on_white():
    layer = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    layer.putpixel((1, 0), (200, 0, 0, 255))
    expected = [[[255, 255, 255], [200, 0, 0]]]
    np.testing.assert_array_equal(pixels(encoded(layer)), expected)
    grey = Image.new("LA", (1, 1), (10, 128))
    assert abs(int(pixels(encoded(grey))[0, 0, 0]) - 132) <= 1
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(encoded(palette, transparency=0)), expected)


def test_palette_cmyk_bilevel_and_grey(picture):
    assert pixels(encoded(picture.convert("P"))).shape == (16, 24, 3)
    cmyk = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95)
    assert np.abs(pixels(cmyk).astype(int) - [0, 255, 255]).max() < 12
    np.testing.assert_array_equal(pixels(encoded(Image.new("1", (1, 1), 1))), [[[255] * 3]])
    np.testing.assert_array_equal(pixels(encoded(Image.new("L", (1, 1), 77))), [[[77] * 3]])


def test_sixteen_bits_are_scaled():
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    content = encoded(Image.fromarray(values))
    np.testing.assert_array_equal(pixels(content)[0, :, 0], [0, 1, 128, 255])
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    np.testing.assert_array_equal(pixels(encoded(unit, "TIFF"))[0, :, 0], [0, 128, 255])
    wide = Image.fromarray(np.array([[-1e6, 1e6]], dtype=np.float32))
    np.testing.assert_array_equal(pixels(encoded(wide, "TIFF"))[0, :, 0], [0, 255])
    broken = Image.fromarray(np.array([[np.nan, 1.0]], dtype=np.float32))
    with pytest.raises(DecodeError, match="^corrupt: .*NaN"):
        decode_image(encoded(broken, "TIFF"))


def test_the_first_frame_of_an_animation_counts(picture):
    other = Image.new("RGB", picture.size, (255, 0, 0))
    for kind in ("WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = encoded(picture, kind, save_all=True, append_images=[other], **options)
        np.testing.assert_array_equal(pixels(content), np.asarray(picture))


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)


@pytest.mark.parametrize(
    ("content", "reason", "part"),
    [
        (b"", "empty", "0 bytes"),
        (b"hello world, no image", "unsupported_type", "68 65 6c"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported_type", "PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_type", "41 bytes"),
        (png_header(50000, 50000) + chunk(b"IDAT", b""), "too_large", "2500000000"),
        (png_header(12000, 12000) + chunk(b"IDAT", b""), "too_large", "12000 x 12000"),
    ],
)
def test_what_is_refused(content, reason, part):
    with pytest.raises(DecodeError) as caught:
        decode_image(content)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"{reason}: ")
    assert part in str(caught.value)
    if reason == "too_large":
        assert "more than the 128000000 allowed" in str(caught.value)


def test_truncated_files():
    big = models.noise_image(1, (300, 200))
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", "BMP"):
        content = encoded(big, kind)
        with pytest.raises(DecodeError) as caught:
            decode_image(content[: len(content) * 2 // 3])
        assert caught.value.reason in ("truncated", "corrupt")
    with pytest.raises(DecodeError, match="^truncated"):
        decode_image(encoded(big, "JPEG")[:5000])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DecodeError, match="^unreadable_file: .*gone.png"):
        decode_image(tmp_path / "gone.png")
    with pytest.raises(DecodeError, match="^unreadable_file"):
        decode_image(tmp_path)
    with pytest.raises(DecodeError, match="^unreadable_file"):
        decode_image("a\0b")


def test_pixel_limit(picture):
    assert pixels(encoded(picture), max_pixels=24 * 16).shape == (16, 24, 3)
    with pytest.raises(DecodeError, match="too_large: 24 x 16 pixels, more than the 383 allowed"):
        decode_image(encoded(picture), max_pixels=383)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_mutated_images_decode_or_say_why(kind):
    generator = np.random.default_rng(7)
    original = encoded(models.noise_image(2, (40, 30)), kind)
    for _ in range(80):
        content = bytearray(original)
        for _ in range(generator.integers(1, 12)):
            content[generator.integers(len(content))] = generator.integers(256)
        if generator.random() < 0.3:
            content = content[: generator.integers(len(content))]
        try:
            image = decode_image(bytes(content), max_pixels=1_000_000)
        except DecodeError as error:
            assert error.reason in REASONS
        else:
            assert image.mode == "RGB"


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(content):
    with pytest.raises(DecodeError) as caught:
        decode_image(content)
    assert caught.value.reason in REASONS


def test_to_rgb_leaves_rgb_alone(picture):
    np.testing.assert_array_equal(np.asarray(to_rgb(picture)), np.asarray(picture))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [32, (32, 48)])
@pytest.mark.parametrize("shape", [(40, 40), (100, 37), (37, 101), (20, 20), (32, 32), (5, 60)])
def test_preprocessing_is_open_clips_bit_for_bit(interpolation, mode, size, shape):
    import torch

    from bliss_index.encode.torchvision_cure import import_open_clip

    import_open_clip()
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = {
        "size": size,
        "mean": (0.48, 0.45, 0.40),
        "std": (0.26, 0.26, 0.27),
        "interpolation": interpolation,
        "resize_mode": mode,
        "fill_color": 7,
    }
    image = models.noise_image(3, shape)
    expected = image_transform_v2(PreprocessCfg(**config), is_train=False)(image)
    preprocess = Preprocess.from_open_clip(config)
    batch = preprocess.pixels(image)[None]
    result = preprocess.normalise(batch, torch.device("cpu"), torch.float32)[0]
    assert torch.equal(result, expected)


def test_preprocess_refuses_what_it_does_not_know():
    valid = {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    for change, part in [
        ({"interpolation": "lanczos"}, "lanczos"),
        ({"resize_mode": "crop"}, "crop"),
        ({"std": (0.5, 0.5, 0.0)}, "std"),
    ]:
        with pytest.raises(EncoderError, match=part):
            Preprocess.from_open_clip({**valid, **change})
    preprocess = Preprocess.from_open_clip(valid)
    with pytest.raises(InvalidInputError, match="1 x 1000"):
        preprocess.pixels(Image.new("RGB", (1, 1000)))
    with pytest.raises(InvalidInputError, match="'L'"):
        preprocess.pixels(Image.new("L", (4, 4)))


def png_of(bits, colour, rows, key):
    """A PNG of numbers, one of which, or one triple, is clear."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    values = np.asarray(rows).astype(">u2" if bits == 16 else "u1")
    body = b"".join(b"\0" + row.tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    clear = np.asarray(key).astype(">u2").tobytes()
    parts = [(b"IHDR", head), (b"tRNS", clear), (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)


@pytest.mark.parametrize(
    ("bits", "colour", "rows", "key", "expected"),
    [
        (8, 2, [[[9, 8, 7], [9, 8, 6]]], (9, 8, 7), [[255] * 3, [9, 8, 6]]),
        (8, 2, [[[9, 8, 7], [9, 8, 6]]], (1, 1, 1), [[9, 8, 7], [9, 8, 6]]),
        (8, 2, [[[0, 0, 0], [0, 0, 1]]], (0, 0, 0), [[255] * 3, [0, 0, 1]]),
        (16, 2, [[[2570, 2570, 2570], [514, 771, 1028]]], (514, 771, 1028),
         [[10] * 3, [255] * 3]),
        (16, 2, [[[514, 771, 1028], [5, 5, 5]]], (2, 3, 4), [[2, 3, 4], [255] * 3]),
        (16, 0, [[1000, 65535]], 1000, [[255] * 3, [255] * 3]),
        (16, 0, [[1000, 1001]], 1001, [[4] * 3, [255] * 3]),
        (16, 0, [[1000, 0]], 7, [[4] * 3, [0] * 3]),
        (8, 0, [[10, 20]], 20, [[10] * 3, [255] * 3]),
    ],
)  # fmt: skip
def test_one_colour_of_a_png_is_clear(bits, colour, rows, key, expected):
    assert np.asarray(decode_image(png_of(bits, colour, rows, key)))[0].tolist() == expected


def tiff_of(values, **tags):
    content = io.BytesIO()
    Image.fromarray(values).save(content, "TIFF")
    data = bytearray(content.getvalue())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", data, at)
        if f"tag{tag}" in tags:
            struct.pack_into("<H", data, at + 8, tags[f"tag{tag}"])
    return bytes(data)


@pytest.mark.parametrize(
    ("values", "tags", "expected"),
    [
        (np.array([[0, 3, -1]], np.int32), {}, [64, 255, 0]),
        (np.array([[0, 3, -1]], np.int32), {"tag339": 1}, [0, 0, 255]),  # unsigned
        (np.array([[0, 65535, 257]], np.int32), {"tag339": 1}, [0, 255, 1]),
        (np.array([[-(2**31), 2**31 - 1]], np.int32), {}, [0, 255]),
        (np.array([[0, 257, 65535]], np.uint16), {"tag262": 0}, [255, 254, 0]),  # white is zero
        (np.array([[0, 257, 65535]], np.uint16), {}, [0, 1, 255]),
        (np.array([[0.0, 1.0, 0.2]], np.float32), {"tag262": 0}, [255, 0, 204]),
        (np.array([[0.0, 1.0, 0.2]], np.float32), {}, [0, 255, 51]),
        (np.array([[0, 200]], np.uint8), {"tag262": 0}, [255, 55]),
        (np.array([[-9999.0, 0.0, 1.0]], np.float32), {}, [0, 255, 255]),
    ],
)
def test_grey_values_of_tiffs(values, tags, expected):
    found = np.asarray(decode_image(tiff_of(values, **tags)))[0]
    assert found[:, 0].tolist() == expected
    assert (found == found[:, :1]).all()
