"""Rules of dropping, as streams take them; they are those of `swjax.streaming.dropping`, which training reads, too."""

from swjax.streaming.dropping import (
    DROPS,
    DTD,
    EVS,
    MSSAVT,
    Drop,
    FrameView,
    PixelDTD,
    Random,
    Uniform,
    VidCom2,
    drop_of,
)

__all__ = ["DROPS", "DTD", "EVS", "MSSAVT", "Drop", "FrameView", "PixelDTD", "Random", "Uniform", "VidCom2", "drop_of"]
