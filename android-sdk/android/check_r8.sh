#!/bin/sh
# check_r8.sh R8_JAR ANDROID_JAR EXECUTORCH_JAR AARS_UNPACKED AAR CLASS_PATH_FILE FOLDER
#
# Shrinks the AAR and all that it needs as a released app's build does, with the rules that the libraries bring. Fails where R8
# misses a class or warns. java.* comes from the JDK, since ANDROID_JAR has none: animal-sniffer sees to what Android 8.0 lacks of
# it. EXECUTORCH_JAR stands for org.pytorch:executorch-android, which the app's build has instead.
set -e
r8=$1 android=$2 executorch=$3 unpacked=$4 aar=$5 class_path=$(cat "$6") folder=$7
rm -rf "$folder"
mkdir -p "$folder/aar"
java=${JAVA_HOME:+$JAVA_HOME/bin/}java
jdk=$("$java" -XshowSettings:properties -version 2>&1 | sed -n 's/^ *java.home = //p')
(cd "$folder/aar" && "${JAVA_HOME:+$JAVA_HOME/bin/}jar" xf "$aar")

# What an app of its own would keep: the calls of the guide.
cat > "$folder/app.pro" <<'RULES'
-keep class ai.chainfed.android.ChainFed { public *; }
-keep class ai.chainfed.android.ChainFed$Companion { public *; }
-keep class ai.chainfed.android.ChainFedBuilder { public *; }
-keep class ai.chainfed.android.PolicyBuilder { public *; }
-keep class ai.chainfed.core.ExampleSource { public *; }
# The app's build makes it, of WorkManager's resources.
-dontwarn androidx.work.R$bool
RULES

set -- --pg-conf "$folder/app.pro" --pg-conf "$folder/aar/proguard.txt"
inputs="$folder/aar/classes.jar"
for library in "$unpacked"/*; do
    case $library in */monitor-*) continue ;; esac # Of tests alone.
    inputs="$inputs $library/classes.jar"
    if [ -f "$library/proguard.txt" ]; then set -- "$@" --pg-conf "$library/proguard.txt"; fi
done
old=$IFS
IFS=:
for jar in $class_path; do
    case $jar in
        */android-all-*.jar | */chainfed-android-aars-*.jar | */chainfed-executorch-host-*.jar) ;; # Given by themselves.
        */jsr305-*.jar) ;; # Annotations, which ANDROID_JAR has too.
        *.jar) IFS=$old; inputs="$inputs $jar"; IFS=: ;;
    esac
done
IFS=$old
# Paths of a Maven build have no spaces here: they come from a class path.
# shellcheck disable=SC2086
"$java" -Xmx1500m -cp "$r8" com.android.tools.r8.R8 --release --min-api 26 --lib "$android" --lib "$jdk" --classpath "$executorch" \
    "$@" --output "$folder/app.zip" $inputs > "$folder/r8.log" 2>&1 || { cat "$folder/r8.log" >&2; exit 1; }
if grep -qi 'warning' "$folder/r8.log"; then
    cat "$folder/r8.log" >&2
    exit 1
fi
echo "R8: $(unzip -l "$folder/app.zip" | tail -1 | awk '{print $1}') bytes of dex for the SDK and all that it needs, no warnings"
