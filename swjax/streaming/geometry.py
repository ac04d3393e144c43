"""How the pictures of a video become tokens: the numbers that a model's image processor and its positions share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Sizes of patches, tokens and frames; a model's are in its configuration. Defaults are Qwen2.5-VL's.

    Attributes:
        patch_size: pixels on a side of a patch.
        merge_size: patches on a side of the square that becomes one token.
        temporal_patch_size: pictures to a patch, which make a frame.
        tokens_per_second: temporal ids a second.
        pixel_mean, pixel_std: of each color, from 0 to 1: what pixels are normalized with. The defaults are those of
            CLIP's training images.
    """

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    tokens_per_second: float = 2
    pixel_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def token_size(self) -> int:
        """Pixels on a side of a token: what the sides of a resized picture are multiples of."""
        return self.patch_size * self.merge_size

    @property
    def token_patches(self) -> int:
        """Patches of a token."""
        return self.merge_size**2

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch: colors x pictures x patch x patch; 1,176 for Qwen2.5-VL."""
        return len(self.pixel_mean) * self.temporal_patch_size * self.patch_size**2

    def frame_seconds(self, fps: float) -> float:
        """Seconds from one frame to the next, at so many pictures a second."""
        return self.temporal_patch_size / fps


DEFAULT_GEOMETRY = Geometry()
"""What is taken where there is no model to ask."""
