#!/bin/sh
# unpack.sh AARS FOLDER CLASSES: each AAR of AARS into a folder of its own under FOLDER, all their classes into CLASSES.
set -e
mkdir -p "$2" "$3"
aars=$(cd "$1" && pwd)
folder=$(cd "$2" && pwd)
classes=$(cd "$3" && pwd)
for aar in "$aars"/*.aar; do
    name=$(basename "$aar" .aar)
    mkdir -p "$folder/$name"
    (cd "$folder/$name" && "${JAVA_HOME:+$JAVA_HOME/bin/}jar" xf "$aar")
    (cd "$classes" && "${JAVA_HOME:+$JAVA_HOME/bin/}jar" xf "$folder/$name/classes.jar")
done
# Of no use to a compiler, and many libraries bring the same names.
rm -rf "$classes/META-INF"
