"""Schema of ``data``, as dataclasses; see ``config.schema``. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from flowergen.config.rules import EXISTING_FOLDER, ImageChannels, Name, Natural, Rule, Seed, between, folder, sides_between

AREAS = Rule(lambda ends: len(ends) == 2 and 0 < ends[0] <= ends[1] <= 1, "must be two increasing numbers above 0, up to 1")


@dataclass
class _Images:
    _target_: str
    name: Name
    image_size: Annotated[Any, sides_between(8, 1024)]
    channels: ImageChannels
    fit: Literal["crop", "pad"]
    batch_size: Natural | Literal["auto"]
    split: Literal["auto", "official", "stratified", "all"]
    split_seed: Seed
    horizontal_flip: bool
    random_resized_crop: Annotated[list[float], AREAS] | None
    color_jitter: Annotated[float, between(0, 1)]
    on_corrupt: Literal["error", "skip"]
    cache_dir: str
    decode: Literal["once", "stream"]
    device_resident: bool | Literal["auto"]
    seed: Seed


@dataclass
class Procedural(_Images):
    """conf/data/procedural.yaml."""

    _target_: Literal["flowergen.data.procedural_datamodule.ProceduralDataModule"]
    num_images: Natural
    num_classes: Annotated[int, between(1, 102)]
    drawing_seed: Seed
    split: Literal["stratified", "all"]


@dataclass
class Flowers102(_Images):
    """conf/data/flowers102.yaml."""

    _target_: Literal["flowergen.data.flowers102_datamodule.Flowers102DataModule"]
    root: str
    segmented: bool
    split: Literal["stratified", "all", "official"]


CelebAAttribute = Literal[  # columns of list_attr_celeba.txt
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses", "Goatee",
    "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard",
    "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair",
    "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
]  # fmt: skip


@dataclass
class CelebA(_Images):
    """conf/data/celeba.yaml."""

    _target_: Literal["flowergen.data.celeba_datamodule.CelebADataModule"]
    root: str
    attribute: CelebAAttribute | None


@dataclass
class ImageFolder(_Images):
    """conf/data/image_folder.yaml."""

    _target_: Literal["flowergen.data.image_folder_datamodule.ImageFolderDataModule"]
    root: Annotated[str, EXISTING_FOLDER]


@dataclass
class HuggingFace(_Images):
    """conf/data/huggingface.yaml."""

    _target_: Literal["flowergen.data.huggingface_datamodule.HuggingFaceDataModule"]
    root: Annotated[str, EXISTING_FOLDER] | None
    subset: str | None
    image_column: Name
    label_column: Name


@dataclass
class Landscapes(ImageFolder):
    """conf/data/landscapes.yaml."""

    _target_: Literal["flowergen.data.landscapes_datamodule.LandscapesDataModule"]  # type: ignore[assignment]
    root: Annotated[str, folder("unpack a collection such as Kaggle's Landscape Classification there, or give data.root=DIR")]


@dataclass
class Dogs(ImageFolder):
    """conf/data/dogs.yaml."""

    _target_: Literal["flowergen.data.dogs_datamodule.DogsDataModule"]  # type: ignore[assignment]
    root: Annotated[
        str, folder("unpack http://vision.stanford.edu/aditya86/ImageNetDogs/images.tar there, or give data.root=DIR with dogs")
    ]
