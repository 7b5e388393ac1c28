#!/usr/bin/env bash
# Makes the pictures of docs/guide.md, with the guide's own commands on the bundles that ship. About five minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
out=docs/images
faces=bundles/images

hspace sweep $faces/avatar016.png -b bundles/avatars32 --over Blond_Hair=-0.8:0.8:5 --over Dark_Skin=-0.6:0.6:5 -o $out/sweep.png --force
hspace sweep $faces/avatar016.png $faces/avatar004.png $faces/avatar000.png -b bundles/avatars32 --steps 100 \
    --over hair_length=-3:3:7 -o $out/hair_length.png --force
hspace interpolate $faces/avatar016.png $faces/avatar004.png -b bundles/avatars32 --steps 100 --frames 7 -o $out/interpolate.png --force
hspace timeline $faces/avatar016.png -b bundles/avatars32 --steps 50 --frames 7 -o $out/timeline.png --force
hspace inject $faces/avatar016.png $faces/avatar004.png -b bundles/avatars32 --steps 100 -o $out/inject.png --force
curves=$(mktemp -d)
hspace calibrate bundles/avatars32 $faces --steps 100 -o "$curves" --force
mv "$curves/curves.png" $out/curves.png
rm -r "$curves"
