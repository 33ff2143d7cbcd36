"""What a network is tested on: the images, their size, and the classes to choose from."""

import dataclasses

TITLES = {
    "digits": "Digits",
    "imagenet2012": "ImageNet",
    "imagenet_a": "ImageNet-A",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}
CIFAR = ("cifar10", "cifar100")  # share a table, and its rows


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """Which images a network is tested on, and which classes it may choose.

    Args:
      data: as in `specs.DataSpec.name`, but ImageNet in shards or folders is imagenet2012 too.
      classes: names or numbers of the classes, unless `data` implies them.
      eval_classes: as in `specs.DataSpec`.
      flip: each image is scored together with its mirror image. No published figure was scored so.
      held_out: training images that were kept from training, and no test images.
    """

    data: str
    classes: tuple[str, ...] = ()
    eval_classes: str = "all"
    flip: bool = False
    held_out: bool = False

    @property
    def title(self) -> str:
        """The name for people."""
        shown = ", ".join(self.classes[:5]) + (f", ... ({len(self.classes)})" if len(self.classes) > 5 else "")
        classes = f", classes {shown}" if self.classes else ""
        own = ", among its own classes" if self.eval_classes == "own" else ""
        held_out = ", held out of training" if self.held_out else ""
        flip = ", with mirror images" if self.flip else ""
        return f"{TITLES.get(self.data, self.data)}{held_out}{classes}{own}{flip}"

    @property
    def table(self) -> str:
        """Title of the table that shows it."""
        return "CIFAR" if self in (EvalSet(data) for data in CIFAR) else self.title


@dataclasses.dataclass(frozen=True)
class Condition:
    """A test set and the size of its images in pixels; accuracies under the same condition can be compared."""

    eval_set: EvalSet
    image_size: int

    @property
    def title(self) -> str:
        """The name for people."""
        return f"{self.eval_set.title} at {self.image_size} px"
