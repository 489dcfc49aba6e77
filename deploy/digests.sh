#!/bin/sh
# Which images the tags in deploy/ are today: a tag can be moved, a digest cannot. docker asks the registries.
#
#   deploy/digests.sh >> deploy/.env                      for docker-compose.yaml and the Dockerfile; the last line of a
#                                                         name counts, so this again moves on to newer images
#   deploy/digests.sh deploy/helm-values.yaml > new.yaml  the values for Helm, each image by its digest
set -eu
here=$(dirname "$0")

digest() {
    found=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$1") || exit 1
    printf '%s\n' "$found" | grep -Eqx 'sha256:[0-9a-f]{64}' || {
        echo "docker gives no digest of $1, but: $found" >&2
        exit 1
    }
    printf '%s\n' "$found"
}

for_compose() {
    {
        sed -n 's/^ARG PYTHON=/PYTHON_DIGEST python:/p' "$here/Dockerfile"
        sed -n 's/^ *image:.* \([^ ]*\)@${\([A-Z_]*\).*/\2 \1/p' "$here/docker-compose.yaml"
    } | while read -r variable image; do
        found=$(digest "$image") || exit 1
        printf '%s=%s\n' "$variable" "$found"
    done
}

# The chart joins repository and tag by a colon. `…@sha256` as the one and the digits as the other make a digest.
for_helm() {
    name=
    while IFS= read -r line; do
        case $line in
            *' repository: '*@sha256) ;;
            *' repository: '*)
                name=${line##* }
                line=$line@sha256
                ;;
            *' tag: '*)
                if [ "$name" ]; then
                    tag=$(printf %s "${line##* }" | tr -d '"')
                    found=$(digest "$name:$tag") || exit 1
                    line="${line%%tag:*}tag: \"${found#sha256:}\""
                    name=
                fi
                ;;
        esac
        printf '%s\n' "$line"
    done <"$1"
}

# All of it or nothing.
if [ $# -eq 0 ]; then
    lines=$(for_compose) || exit 1
else
    lines=$(for_helm "$1") || exit 1
fi
printf '%s\n' "$lines"
