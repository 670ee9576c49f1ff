"""Files: written whole or not at all, read with care, locked; tensors with a checksum."""

from vae_pyro.files.code import COMPUTING, code_digest, without_words
from vae_pyro.files.disk import (
    cannot_write,
    flush_folder,
    lock,
    make_folder,
    parse_file,
    parse_json,
    read_regular,
    regular_size,
    remove_leftovers,
    write_atomically,
)
from vae_pyro.files.private import private_folder
from vae_pyro.files.tensors import read_tensors, tensor_shapes, write_tensors

__all__ = [
    "COMPUTING",
    "cannot_write",
    "code_digest",
    "flush_folder",
    "lock",
    "make_folder",
    "parse_file",
    "parse_json",
    "private_folder",
    "read_regular",
    "read_tensors",
    "regular_size",
    "remove_leftovers",
    "tensor_shapes",
    "without_words",
    "write_atomically",
    "write_tensors",
]
