#!/usr/bin/env bash
# Wallpapers and stamps of Debian to a run of half an hour on two cores: run.sh OUT [settings of the training]
set -euo pipefail
out=$1
shift

# 1. Pictures from Debian's packages, unpacked beside the run; nothing is installed.
unpack() {
  local folder=$out/files/$1
  shift
  [ -e "$folder/done" ] && return
  mkdir -p "$folder"
  for package in "$@"; do
    (cd "$folder" && apt-get download "$package")
    dpkg-deb -x "$folder/$package"_*.deb "$folder"
    rm "$folder/$package"_*.deb
  done
  touch "$folder/done"
}
unpack wallpapers plasma-workspace-wallpapers mate-backgrounds gnome-backgrounds
unpack stamps tuxpaint-stamps-default
# The first line beside a stamp says what it shows; those after it say so in seventy languages.
if [ ! -e "$out/files/one-line" ]; then
  find "$out/files/stamps" -name "*.txt" -exec sed -i '2,$d' {} +
  touch "$out/files/one-line" # written again, they would have to be read again
fi

# 2. Labels. Of wallpapers that differ in size only, one is trained on: the preset's `where` reads `duplicates`.
onediffusion ingest "$out/files/wallpapers/usr/share" "$out/wallpapers"
onediffusion label "$out/wallpapers" caption edges duplicates latents-96 latents-96-edges text \
  --set "text.tasks=[text2image, edges, deblurring, inpainting]"
onediffusion ingest "$out/files/stamps/usr/share/tuxpaint/stamps" "$out/stamps"
onediffusion label "$out/stamps" caption edges segmentation latents-96 latents-96-edges latents-96-segmentation text \
  --set "text.tasks=[text2image, edges, segmentation]"

# 3. The run, and a page that shows its losses, also of rows held out, and the same rows drawn step by step.
onediffusion train small-cpu --run "$out/run" \
  --set "mixture.wallpapers.dataset=$out/wallpapers" --set "mixture.stamps.dataset=$out/stamps" "$@"
onediffusion evaluate "$out/run"
onediffusion report "$out/run"
