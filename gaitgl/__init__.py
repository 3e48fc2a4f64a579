"""GaitGL: the science of the project. Arrays in, arrays out; nothing here touches the disk.

Import from the modules (``from gaitgl.model import GaitGL``): re-exporting their names here would
make the processes that normalize silhouettes load torch.
"""
