"""Handwritten digits, 8 by 8 grey values: the images that scikit-learn ships."""

from collections.abc import Sequence
from typing import Literal

from fedmoe.data.dataset import Dataset
from fedmoe.data.examples import Example, Share, Splits, split_by_group
from fedmoe.errors import DataError
from fedmoe.section import section

PRETRAINING = 400
"""The first so many images are for pretraining a base; no client and no score ever sees them."""
LEVELS = 16
"""The largest value as published; here white is 255."""


@section
class Digits(Dataset):
    """1,397 of the 1,797 digits, whose label and response is the digit; for image classifiers.

    A prompt is the image's 64 grey values, 0 to 255, first row first. The first 400 images as they
    come are left out: they are what `python -m simulations.vmoe_digits` pretrains its base on. As
    the images come writer by writer, those of the first ones are the base's.

    Source: UCI's "Optical Recognition of Handwritten Digits", its test part (Alpaydin and Kaynak
    1998, CC BY 4.0), in the package `scikit-learn`: `pip install 'fedmoe[vision]'`.
    """

    name: Literal["digits"] = "digits"
    test_share: Share = 0.25
    """Share of the images that are for testing."""
    validation_share: Share = 0.1
    """Share of the images that are for validation."""

    def load(self, seed: int) -> Splits:
        """Return the splits, stratified by digit.

        Raises:
            DataError: scikit-learn is not installed.
        """
        return split_by_group(
            all_digits()[PRETRAINING:],
            seed,
            validation_share=self.validation_share,
            test_share=self.test_share,
        )


def of_pretraining() -> Sequence[Example]:
    """Return the images that are kept for pretraining; see `Digits` for the errors."""
    return all_digits()[:PRETRAINING]


def all_digits() -> list[Example]:
    """Return all images in their published order.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "digits: the images are in scikit-learn, which is not installed; "
            "pip install 'fedmoe[vision]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    grey = (pixels * 255 / LEVELS).round().astype(int)
    return [
        Example(" ".join(map(str, image)), str(label), str(label))
        for image, label in zip(grey.tolist(), labels.tolist(), strict=True)
    ]
