"""Ways to damage a file. Each takes its path and a random generator, and says what was done."""

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

Damage = Callable[[Path, Random], None]


def flip_a_bit(path: Path, random: Random) -> None:
    _bytes(
        path,
        lambda data: data.__setitem__(
            place := random.randrange(len(data)), data[place] ^ 1 << random.randrange(8)
        ),
    )


def flip_a_bit_near_the_start(path: Path, random: Random) -> None:
    _bytes(
        path,
        lambda data: data.__setitem__(
            place := random.randrange(min(400, len(data))), data[place] ^ 1 << random.randrange(8)
        ),
    )


def cut(path: Path, random: Random) -> None:
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size)])


def cut_the_last_byte(path: Path, random: Random) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path, random: Random) -> None:
    path.write_bytes(b"")


def zero_a_block(path: Path, random: Random) -> None:
    def zero(data: bytearray) -> None:
        length = random.choice([4, 16, 64, 512])
        start = random.randrange(len(data))
        data[start : start + length] = bytes(len(data[start : start + length]))

    _bytes(path, zero)


def swap_two_blocks(path: Path, random: Random) -> None:
    def swap(data: bytearray) -> None:
        size = 8
        one, two = (random.randrange(max(1, len(data) - size)) for _ in range(2))
        a, b = data[one : one + size], data[two : two + size]
        data[one : one + size], data[two : two + size] = b, a

    _bytes(path, swap)


def append(path: Path, random: Random) -> None:
    path.write_bytes(path.read_bytes() + random.choice([b"\0", b"\n", b"x", random.randbytes(100)]))


def prepend(path: Path, random: Random) -> None:
    path.write_bytes(random.choice([b"\0", b"\n", b" ", b"\xef\xbb\xbf"]) + path.read_bytes())


def double(path: Path, random: Random) -> None:
    path.write_bytes(2 * path.read_bytes())


def fill_with_noise(path: Path, random: Random) -> None:
    path.write_bytes(random.randbytes(path.stat().st_size))


def delete(path: Path, random: Random) -> None:
    path.unlink()


def make_a_folder(path: Path, random: Random) -> None:
    path.unlink()
    path.mkdir()


def link_to_nowhere(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def line_ends_of_windows(path: Path, random: Random) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def other_encoding(path: Path, random: Random) -> None:
    path.write_bytes(path.read_text(encoding="utf-8").encode("utf-16"))


def drop_a_line(path: Path, random: Random) -> None:
    _lines(path, lambda lines: lines.pop(random.randrange(len(lines))))


def repeat_a_line(path: Path, random: Random) -> None:
    _lines(path, lambda lines: lines.insert(place := random.randrange(len(lines)), lines[place]))


def swap_two_lines(path: Path, random: Random) -> None:
    def swap(lines: list[str]) -> None:
        one, two = random.sample(range(len(lines)), 2)
        lines[one], lines[two] = lines[two], lines[one]

    _lines(path, swap)


def change_a_digit(path: Path, random: Random) -> None:
    def change(data: bytearray) -> None:
        digits = [place for place, byte in enumerate(data) if chr(byte).isdigit()]
        place = random.choice(digits)
        data[place] = ord("0") + (data[place] - ord("0") + random.randrange(1, 10)) % 10

    _bytes(path, change)


def rename_a_tensor(path: Path, random: Random) -> None:
    _tensors(path, lambda tensors, _: tensors.__setitem__("renamed", tensors.pop(_name(tensors, random))))


def drop_a_tensor(path: Path, random: Random) -> None:
    _tensors(path, lambda tensors, _: tensors.pop(_name(tensors, random)))


def add_a_tensor(path: Path, random: Random) -> None:
    _tensors(path, lambda tensors, _: tensors.__setitem__("additional", torch.ones(3)))


def exchange_two_tensors(path: Path, random: Random) -> None:
    def exchange(tensors: dict, _: dict) -> None:
        one, two = random.choices(sorted(tensors), k=2)
        tensors[one], tensors[two] = tensors[two], tensors[one]

    _tensors(path, exchange)


def change_a_dtype(path: Path, random: Random) -> None:
    dtype = random.choice([torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8])
    _one(path, random, lambda tensor: tensor.to(dtype))


def change_a_shape(path: Path, random: Random) -> None:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        forms = [
            tensor.flatten(),
            tensor[None],
            tensor.transpose(0, -1) if tensor.ndim else tensor,
            tensor[:-1] if tensor.ndim else tensor,
        ]
        return random.choice(forms).clone()

    _one(path, random, change)


def scale_a_tensor(path: Path, random: Random) -> None:
    _one(
        path,
        random,
        lambda tensor: (tensor * 1.01).to(tensor.dtype) if tensor.is_floating_point() else tensor + 1,
    )


def reverse_a_tensor(path: Path, random: Random) -> None:
    _one(path, random, lambda tensor: tensor.flip(0) if tensor.ndim else tensor + 1)


def write_nan(path: Path, random: Random) -> None:
    def write(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.numel():
            tensor.view(-1)[random.randrange(tensor.numel())] = random.choice([float("nan"), float("inf")])
        return tensor

    _one(path, random, write)


def drop_the_metadata(path: Path, random: Random) -> None:
    _tensors(path, lambda _, metadata: metadata.clear())


def change_the_metadata(path: Path, random: Random) -> None:
    """One of its entries; where that is JSON, one value within."""

    def change(_: dict, metadata: dict) -> None:
        if not metadata:
            return
        key = random.choice(sorted(metadata))
        try:
            value = json.loads(metadata[key])
        except ValueError:
            value = metadata[key]
        places = list(leaves(value))
        changed = set_leaf(value, places[random.randrange(len(places))], random) if places else "x"
        metadata[key] = changed if isinstance(changed, str) else json.dumps(changed)

    _tensors(path, change)


def drop_one_of_the_metadata(path: Path, random: Random) -> None:
    _tensors(
        path, lambda _, metadata: metadata.pop(random.choice(sorted(metadata)), None) if metadata else None
    )


def reorder_the_tensors(path: Path, random: Random) -> None:
    """Write the same tensors at other places of the file, which is the same content."""
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        data = file.read()
    metadata = header.pop("__metadata__", None)
    names = sorted(header, key=lambda name: random.random())
    written, parts, offset = {}, [], 0
    if metadata is not None:
        written["__metadata__"] = dict(sorted(metadata.items(), reverse=True))
    for name in names:
        start, end = header[name]["data_offsets"]
        parts.append(data[start:end])
        written[name] = {**header[name], "data_offsets": [offset, offset + end - start]}
        offset += end - start
    head = json.dumps(written).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(parts))


def wrap_the_json(path: Path, random: Random) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(random.choice([[content], {"content": content}, None, 3, "text", [], {}])))


def drop_a_key(path: Path, random: Random) -> None:
    _json(path, lambda content: _objects(content, random, lambda found, key: found.pop(key)))


def rename_a_key(path: Path, random: Random) -> None:
    _json(
        path,
        lambda content: _objects(
            content, random, lambda found, key: found.__setitem__(f"{key}x", found.pop(key))
        ),
    )


def reorder_the_keys(path: Path, random: Random) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(dict(sorted(content.items(), reverse=True))), encoding="utf-8")


def repeat_a_key(path: Path, random: Random) -> None:
    """Two entries of one name, of which readers take the last."""
    content = json.loads(path.read_text(encoding="utf-8"))
    key = random.choice(sorted(content))
    text = json.dumps({key: None})[1:-1]
    place = path.read_text(encoding="utf-8").rstrip().removesuffix("}").rstrip()
    path.write_text(f"{place}, {text}}}", encoding="utf-8")


def point_outside(path: Path, random: Random) -> None:
    """Names of files that lead out of the folder."""

    def point(content: Any) -> None:
        files = content.get("files") if isinstance(content, dict) else None
        if isinstance(files, dict) and files:
            name = random.choice(sorted(files))
            outside = random.choice(
                [f"../{name}", f"/etc/{name}", f"tints/../../{name}", "~/x", f"./{name}", "", "."]
            )
            files[outside] = files.pop(name) if random.random() < 0.5 else files[name]

    _json(path, point)


ANY: tuple[Damage, ...] = (
    flip_a_bit, flip_a_bit_near_the_start, cut, cut_the_last_byte, empty, zero_a_block, swap_two_blocks,
    append, prepend, double, fill_with_noise, delete, make_a_folder, link_to_nowhere,
)  # fmt: skip
TEXT: tuple[Damage, ...] = (
    line_ends_of_windows, other_encoding, drop_a_line, repeat_a_line, swap_two_lines, change_a_digit,
)  # fmt: skip
TENSORS: tuple[Damage, ...] = (
    rename_a_tensor, drop_a_tensor, add_a_tensor, exchange_two_tensors, change_a_dtype, change_a_shape,
    scale_a_tensor, reverse_a_tensor, write_nan, drop_the_metadata, change_the_metadata,
    drop_one_of_the_metadata, reorder_the_tensors,
)  # fmt: skip
JSON: tuple[Damage, ...] = (
    wrap_the_json, drop_a_key, rename_a_key, reorder_the_keys, repeat_a_key, point_outside,
)  # fmt: skip
BY_SUFFIX = {".safetensors": (*ANY, *TENSORS), ".json": (*ANY, *TEXT, *JSON), ".csv": (*ANY, *TEXT)}


def damages(path: Path) -> list[tuple[str, Damage]]:
    """Return every way to damage a file, by name; each value of a JSON file has its own."""
    if path.stat().st_size == 0:
        return [(append.__name__, append), (delete.__name__, delete)]
    found = [(damage.__name__, damage) for damage in BY_SUFFIX.get(path.suffix, ANY)]
    if path.suffix == ".json":
        for place in leaves(json.loads(path.read_text(encoding="utf-8"))):
            found.append((f"change {'.'.join(map(str, place))}", changing(place)))
    return found


def changing(place: tuple) -> Damage:
    """Return what changes one value of a JSON file."""

    def change(path: Path, random: Random) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(set_leaf(content, place, random), ensure_ascii=False), encoding="utf-8")

    return change


def leaves(content: Any, place: tuple = ()) -> Iterator[tuple]:
    """Yield the place of every value, with those of empty lists and objects."""
    if isinstance(content, (dict, list)) and content:
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from leaves(value, (*place, key))
    else:
        yield place


def set_leaf(content: Any, place: tuple, random: Random) -> Any:
    """Return the content with another value at a place."""
    if not place:
        return changed(content, random)
    content[place[0]] = set_leaf(content[place[0]], place[1:], random)
    return content


def changed(value: Any, random: Random) -> Any:
    """Return a value that is another, of the same kind or not."""
    others = [None, "", [], {}, -1, 10**30, True, "../x"]
    if isinstance(value, bool):
        others = [not value, *others]
    elif isinstance(value, (int, float)):
        others = [value + 1, value * 2 + 1, -value - 1, str(value), *others]
    elif isinstance(value, str):
        others = [f"{value}x", value[::-1] + "y", value[:-1], value.upper() + " ", *others]
    return random.choice([other for other in others if type(other) is not type(value) or other != value])


def _bytes(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def _lines(path: Path, change: Callable[[list[str]], Any]) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if len(lines) > 1:
        change(lines)
    path.write_text("".join(lines), encoding="utf-8")


def _tensors(path: Path, change: Callable[[dict, dict], Any]) -> None:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    if tensors:
        change(tensors, metadata)
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata or None
    )


def _one(path: Path, random: Random, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    def one(tensors: dict, _: dict) -> None:
        name = _name(tensors, random)
        tensors[name] = change(tensors[name])

    _tensors(path, one)


def _name(tensors: dict, random: Random) -> str:
    return random.choice(sorted(tensors))


def _json(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _objects(content: Any, random: Random, change: Callable[[dict, str], Any]) -> None:
    """Change one key of one of the objects within."""
    found = [entry for entry in _walk(content) if isinstance(entry, dict) and entry]
    if found:
        chosen = random.choice(found)
        change(chosen, random.choice(sorted(chosen)))


def _walk(content: Any) -> Iterator[Any]:
    yield content
    children = (
        content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    )
    for child in children:
        yield from _walk(child)


def copy_over(path: Path, source: Path) -> None:
    """Put another file in a file's place."""
    shutil.copyfile(source, path)
