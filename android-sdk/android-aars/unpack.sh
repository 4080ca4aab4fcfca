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
# Many libraries bring the same names there. Kotlin's compiler finds top-level functions by the one kind that stays.
find "$classes/META-INF" -type f ! -name '*.kotlin_module' -delete
