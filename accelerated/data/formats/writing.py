"""What writers have in common: where an image's labels go, and how they are led back to it."""

import os
from pathlib import Path


def label_paths(
    file_names: list[str], suffix: str, image_root: str | Path | None
) -> tuple[Path, list[Path]]:
    """Return a folder of images, and each image's label file: its path below, with another suffix.

    image_root  folder that the names are relative to, which then is the folder; None, or names that
                lead out of it: the one that all images have in common

    Images that differ in their suffix alone get an index.
    """
    root = Path(os.path.abspath(image_root or "."))
    absolute = [Path(os.path.abspath(root / name.replace("\\", "/"))) for name in file_names]
    # A name that leads out of the root would lead out of the folder of labels too.
    below = image_root is not None and all(path.is_relative_to(root) for path in absolute)
    if not below and absolute:
        root = Path(os.path.commonpath([path.parent for path in absolute]))
    paths, taken = [], set()
    for path in absolute:
        relative = path.relative_to(root).with_suffix("")
        unique, index = relative, 2
        while str(unique).casefold() in taken:
            unique, index = relative.with_name(f"{relative.name}_{index}"), index + 1
        taken.add(str(unique).casefold())
        paths.append(unique.with_name(unique.name + suffix))
    return root, paths


def link_images(folder: Path, images: Path) -> None:
    """Make a link `folder`/images to the folder of the images, where the system allows it.

    Readers look for the images there, see `place.linked_images`. The root of all folders is not
    linked to: it would be searched as a whole.
    """
    link, images = folder / "images", images.resolve()
    if images == images.parent or (link.exists() and not link.is_symlink()):
        return
    try:
        link.unlink(missing_ok=True)
        link.symlink_to(images, target_is_directory=True)
    # Without it, --images names the folder.
    except OSError:
        return


def objects_by_image(content: dict) -> dict:
    """Return {image id: its annotations}, without crowd regions, which other formats lack."""
    objects = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):
            objects[annotation["image_id"]].append(annotation)
    return objects
