"""The plumbing: the only code that touches disk, settings, MLflow, devices and processes."""

import os

# OpenCV reads the cap when it is loaded, so before anything here may load it: pictures of more
# pixels are not decoded. OUMVLP's frames have 1.3 million.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))
