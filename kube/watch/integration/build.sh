#!/usr/bin/env bash
# Builds kube-apiserver, kube-controller-manager and kubectl from their Go module,
# once for each version, and prints the folder that they are in. Further commands
# of k8s.io/kubernetes (kubelet) can be named as arguments.
set -euo pipefail

version=1.36.3
staging=0.${version#*.}
dir=${XDG_CACHE_HOME:-$HOME/.cache}/podgate/kubernetes-$version
commands=(kube-apiserver kube-controller-manager kubectl "$@")

mkdir -p "$dir/src" "$dir/bin"
exec 9>"$dir/lock"
flock 9
missing=()
for c in "${commands[@]}"; do
	[ -x "$dir/bin/$c" ] || missing+=("$c")
done
if [ ${#missing[@]} -gt 0 ]; then
	cd "$dir/src"
	# The staging modules are published beside the main one: a replacement for
	# each line that k8s.io/kubernetes replaces by a folder of its own.
	[ -s go.mod ] || printf 'module scratch\n\ngo 1.26.0\n\nrequire k8s.io/kubernetes v%s\n' "$version" >go.mod
	module=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
	sed -n 's,^\t\(k8s\.io/[a-z-]*\) => \./staging/.*,\1,p' "$module/go.mod" | while read -r m; do
		go mod edit -replace "$m=$m@v$staging"
	done
	for c in "${missing[@]}"; do
		echo "building $c $version" >&2
		CGO_ENABLED=0 GOFLAGS=-mod=mod nice go build -trimpath -ldflags \
			"-s -w -X k8s.io/component-base/version.gitVersion=v$version -X k8s.io/component-base/version.gitMajor=${version%%.*} -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<<"$version")" \
			-o "$dir/bin/$c.new" "k8s.io/kubernetes/cmd/$c"
		mv "$dir/bin/$c.new" "$dir/bin/$c"
	done
fi
echo "$dir/bin"
