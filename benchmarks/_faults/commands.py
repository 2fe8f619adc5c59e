"""Command lines that must be refused, one a line, as a shell would read them."""

# Added to a good `simclr train` command, one at a time.
WRONG_OVERRIDES = """\
loss.temprature=1
modle=tiny
model=resnet5O
experiment=cifar11
loss.temperature=
=
a
+
~data
data.batch_size=7 8
data.batch_size=65
trainer.devices=[1
data={
hydra.run.dir=/proc/none/x
ckpt_path=last
ckpt_path=nowhere
ckpt_path=s3://b/c
trusted=[os]"""
# Of the other commands, in a folder that has what `files.things` and `files.folders` write.
WRONG_COMMANDS = """\
serch exported pictures
rank
rank a b
embed
embed exported pictures
embed exported pictures x.txt
embed exported pictures x.npz
embed exported pictures no/x.csv
embed exported pictures file/x.csv
embed exported pictures pictures/0.npz --map pca
embed exported pictures y.npz --map som
embed exported file y.npz
embed exported empty y.npz
embed exported folder-cut y.npz
embed file pictures y.npz
embed ~nobody-of-this-name pictures y.npz
search exported
search exported nowhere
search exported empty
search exported folder-zero
search exported folder-one
search exported pictures -k 0
search exported pictures -k many
search exported pictures --threshold nan
search exported pictures --threshold 0
search exported pictures --query
search exported pictures --query file
search exported pictures --query pictures
search exported pictures --query pictures/0.png --duplicates
search exported pictures --index annoy
search exported pictures --out file
search file pictures
export exported
export exported exported
export exported new --format tflite
export exported new --format timm
export exported new --format torchvision
export exported new --licence ''
export exported file --force
export file new
export empty new
report
report nowhere
report file
report empty
report exported
report . axes=[a,b,c]
report . logger=mlflow
report . hello
pack
pack pictures
pack nowhere new
pack file new
pack empty new
pack pictures pictures
pack pictures file
pack pictures file/new
pack pictures no/new
pack folder-cut new
pack folder-one new quality=0
pack pictures new short_side=-1
pack pictures new max_pixels=1e9
pack pictures new on_corrupt=maybe
pack pictures new qualty=90
pack ~nobody-of-this-name new
evaluate exported protocol=[knn,lineer]
evaluate exported protocol=[]
evaluate exported data=folder
evaluate exported data=folder data.path=empty
evaluate exported data=packed data.path=pictures
evaluate exported transfer=[cifar11]
evaluate exported transfer=[folder]
evaluate exported select_on=test
evaluate exported knn.k=1000000
evaluate exported seeds=[0,0]
evaluate exported semi.start=9
evaluate exported protocol=semi semi.start=1
evaluate exported accelerator=mps
evaluate exported accelerator=tpu
evaluate exported model=resnet18
evaluate exported -m
evaluate file
evaluate empty
evaluate file model=resnet18"""
