#!/bin/bash
# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
# Started by ./dev demo: the example's two services on an embedded bus of their own, no broker.
set -euo pipefail
cd "$(dirname "$0")/.."

CONFIG=examples/hello_world/etc/hello.conf
# The default place of the bus, but in a folder that is thrown away afterwards.
START=$EPOCHREALTIME
export XDG_STATE_HOME=$(mktemp -d)
LOG=$XDG_STATE_HOME/server.log
unset OS_CONNECTION__URL

say() { printf '\ndemo: %s\n' "$*"; }

# The command as a newcomer would type it, then what it prints.
show() {
    echo "\$ $(printf '%q ' "$@")"
    "$@" &
    wait $! # unlike a command in the foreground, this lets a signal through at once
}

cleanup() {
    local code=$?
    trap - EXIT
    trap '' INT TERM # a second Ctrl-C must not cut this short
    if [ "$(jobs -pr)" ]; then
        say "stopping the server"
        kill -TERM $(jobs -pr)
        wait
    fi
    if [ $code != 0 ] && [ $code -lt 128 ]; then # from 128 on it was a signal
        say "something failed; the end of the server's log:"
        tail -n 20 "$LOG"
    fi
    rm -rf "$XDG_STATE_HOME"
    exit $code
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "starting the services of $CONFIG"
echo "\$ tavrida-server --config-file $CONFIG"
tavrida-server --config-file $CONFIG >"$LOG" 2>&1 &
SERVER=$!
for _ in $(seq 1500); do
    grep -q serving "$LOG" && break
    kill -0 $SERVER 2>/dev/null || break
    sleep 0.02
done
grep -E "embedded|serving" "$LOG" || exit 1

say "calling test_hello.hello and waiting for the answer"
show tavrida call test_hello.hello param=123 --config-file $CONFIG

awk "BEGIN { printf \"(the answer came %.1f s after this demo began)\\n\", $EPOCHREALTIME - $START }"

say "a request that its handler refuses: the caller hears why (exit code 1)"
show tavrida call test_world.world param=-1 --config-file $CONFIG || true

say "one that does not fit the handler, which is not run"
show tavrida call test_world.world param=many --config-file $CONFIG || true

say "a cast: nobody waits, the bus keeps it until it is handled"
show tavrida cast test_hello.hello param=124 --config-file $CONFIG

say "a notification, for whoever subscribed"
show tavrida publish test_hello.hello param="from the shell" --config-file $CONFIG

say "what the services printed meanwhile: requests, answers and notifications between the two"
for _ in $(seq 50); do
    grep -q "from the shell" "$LOG" && break
    sleep 0.1
done
grep -v -e ' INFO ' -e Traceback -e '^  ' "$LOG" | head -n 40

say "what to try next"
cat <<END
  - Change a handler in examples/hello_world/hello_world/hello.py and run this again.
  - Run it yourself, without the script: the commands are in examples/hello_world/README.md.
  - Test it in milliseconds: docs/testing.md.
  - Have RabbitMQ? Set url in $CONFIG. Nothing else changes.
END
