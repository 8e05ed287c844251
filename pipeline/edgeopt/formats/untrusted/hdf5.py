"""Parts of an HDF5 file that are stored in other files: reading them puts those files into the model.

HDF5 specification, https://docs.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html: the external data files
message (IV.A.2.h), the virtual layout class (IV.A.2.i) and external links (IV.A.2.g).
"""

from __future__ import annotations

from pathlib import Path

LIMIT = 20


def findings(path: Path) -> list[str]:
    """Datasets and links of an HDF5 file that read other files; needs h5py.

    Raises:
        OSError, ValueError, KeyError, RuntimeError: the file is damaged.
    """
    import h5py

    found: list[str] = []

    def link(name: str, value: object) -> None:
        if isinstance(value, h5py.ExternalLink):
            found.append(f"{name!r} is a link to the file {str(value.filename)!r}")

    def item(name: str, value: object) -> None:
        if not isinstance(value, h5py.Dataset):
            return
        if value.is_virtual:
            sources = sorted({str(source.file_name) for source in value.virtual_sources()})
            found.append("{!r} is a view of the file {!r}".format(name, (sources or ["."])[0]))
        elif value.external:
            found.append(f"{name!r} is stored in the file {str(value.external[0][0])!r}")

    with h5py.File(str(path), "r") as file:
        file.visititems_links(link)
        file.visititems(item)
    return found[:LIMIT]
