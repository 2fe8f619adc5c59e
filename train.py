"""Train a SimCLR encoder.

python train.py                                                        photographs, two CPU cores, minutes
python train.py model=resnet50 trainer.devices=8                       negatives spanning all devices
python train.py -m loss.temperature=0.1,0.5 data.batch_size=256,512    a sweep
"""

import sys

from simclr_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], ends=True))
