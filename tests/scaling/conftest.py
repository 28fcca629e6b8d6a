"""Published points for all tests of scaling laws."""

from tests.scaling.fit.conftest import epoch, published

__all__ = ["epoch", "published"]
