"""What the writers of other formats have in common: where an image's file goes."""

import os
from pathlib import Path, PurePosixPath


def label_paths(file_names: list[str], suffix: str, rooted: bool) -> list[Path]:
    """Return the relative path of each image's label file: its own, with another suffix.

    rooted  keep all its folders, below a root; otherwise those that all images have in common are
            left out

    Images that differ in their suffix alone get an index.
    """
    plain = [PurePosixPath(os.path.normpath(name.replace("\\", "/"))) for name in file_names]
    absolute = [Path(os.path.abspath(path)) for path in plain]
    parents = [path.parent for path in absolute]
    # A name that leads out of the root would lead out of the folder of labels too.
    below = all(path.is_relative_to(Path.cwd()) for path in absolute)
    common = Path.cwd() if (rooted and below) or not parents else Path(os.path.commonpath(parents))
    paths, taken = [], set()
    for path in absolute:
        relative = path.relative_to(common).with_suffix("")
        unique, index = relative, 2
        while str(unique).casefold() in taken:
            unique, index = relative.with_name(f"{relative.name}_{index}"), index + 1
        taken.add(str(unique).casefold())
        paths.append(unique.with_name(unique.name + suffix))
    return paths


def objects_by_image(content: dict) -> dict:
    """Return {image id: its annotations}, without crowd regions, which other formats lack."""
    objects = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):
            objects[annotation["image_id"]].append(annotation)
    return objects
