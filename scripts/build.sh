#!/usr/bin/env bash
# colcon build, quiet where it succeeds.
set -euo pipefail
cd "$(dirname "$0")/.."
# A folder built against another Python or prefix cannot be built on.
mark="$(python -c 'import sys; print(sys.prefix, sys.version)')"
if [ -d build ] && [ "$(cat build/made_with 2>/dev/null)" != "$mark" ]; then
  rm -rf build install log
fi
mkdir -p build log
echo "$mark" > build/made_with
if ! colcon build --event-handlers console_cohesion- > log/build.txt 2>&1; then
  cat log/build.txt >&2
  exit 1
fi
