# Ray on every node, the job on the first one, and back to the queue when it was interrupted.
#
# The head is a child of this script, which runs on the first node; the other nodes get Ray by an srun step. Neither
# `ray stop` nor `ray symmetric-run` is used: both end every Ray of a machine, and other jobs may have theirs on it.
say() { echo "[$(date '+%F %T')] $SLURM_JOB_NAME: $*"; }
ray=("$python" -m ray.scripts.scripts start --block)
# With a container, this script is outside of it: what needs our Python is a step of its own on this node.
inside=()
if [ ${#container[@]} -gt 0 ]; then
    inside=(srun --overlap --export=ALL --mpi=none --cpu-bind=none --kill-on-bad-exit=0 --nodes=1 --ntasks=1)
    inside+=(--nodelist="$SLURMD_NODENAME" --cpus-per-task="$cpus" ${gres:+--gres="$gres"})
    inside+=(--chdir="$working_dir" --container-workdir="$working_dir" "${container[@]}")
fi

identity=$SLURM_JOB_ID # of a task in an array, its number there: the last task's other number is that of the array
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || identity=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
asked="" signals=0 job="" head="" workers="" listener="" guard="" scratch=""

# SIGUSR1 comes from Slurm ahead of the time limit, SIGTERM from `onediffusion stop`; neither reaches the job itself.
interrupt() {
    [ -n "$asked" ] || say "SIG$1: the job is asked to write a checkpoint and to end"
    asked=$1 signals=$((signals + 1))
    [ -z "$job" ] || kill -s "$1" "$job" 2>/dev/null
}
trap 'interrupt USR1' USR1
trap 'interrupt TERM' TERM
trap '' USR2

# Another node's Ray has ended. A job for a fixed number of nodes cannot go on, and might wait for it to the time limit.
lost() {
    say "Ray ended on another node of this job"
    [ "$fixed" = yes ] || return
    requeue=no
    interrupt TERM
    { read -r -t "$checkpoint_seconds" _; [ $? -le 128 ] || kill -KILL "$job"; } <"$scratch/life" 9>&- &
}

# Wait for a process to its end; its exit code. A signal ends bash's own `wait` before that.
await() {
    local seen code=127 again
    while :; do
        seen=$signals
        wait "$1"
        again=$?
        [ "$again" -eq 127 ] || code=$again
        [ "$seen" -ne "$signals" ] || return "$code"
    done
}

# Wait some seconds for a process to end, then kill it.
gone_within() {
    local until=$((SECONDS + $1))
    while kill -0 "$2" 2>/dev/null && [ "$SECONDS" -lt "$until" ]; do sleep 0.2; done
    kill -KILL "$2" 2>/dev/null
    wait "$2" 2>/dev/null
}

# End what this job started, and nothing else: by process id here, by the end of their input on the other nodes.
finish() {
    trap '' USR1 USR2 TERM
    exec 9>&-
    [ -z "$guard" ] || kill -KILL "$guard" 2>/dev/null
    [ -z "$head" ] || "${inside[@]}" "$python" -m cluster.slurm.node end "$head"
    [ -z "$workers" ] || gone_within 60 "$workers"
    [ -z "$listener" ] || gone_within 10 "$listener"
    [ -z "$scratch" ] || rm -rf "$scratch"
}
fail() {
    say "$1"
    finish
    exit "${2:-1}"
}

# 75 (EX_TEMPFAIL): interrupted, to be continued. A job that was canceled is not put back: it would live again.
come_back() {
    finish
    if [ "$requeue" = yes ] && [ "$(squeue --noheader --jobs="$identity" --format=%T)" = RUNNING ]; then
        # After that Slurm ends this script.
        scontrol requeue "$identity" && say "back to the queue; it continues from what it had saved"
    fi
    exit 75
}

cd "$working_dir" || fail "$SLURMD_NODENAME has no folder $working_dir; correct working_dir in the target" 2
[ ${#container[@]} -gt 0 ] || command -v "$python" >/dev/null || fail "$SLURMD_NODENAME has no $python; correct python in the target" 2
"${inside[@]}" "$python" -c 'import importlib.util as find, sys; sys.exit(not all(map(find.find_spec, sys.argv[1:])))' \
    ray cluster pipelines ||
    fail "$SLURMD_NODENAME: $python finds no checkout in $working_dir, or not its packages; correct the target" 2
scratch=$(mktemp -d "$scratch_root/ray-XXXXXX") || fail "$SLURMD_NODENAME: cannot write to $scratch_root" 2
deadline=$((SECONDS + start_seconds))
nodes=$SLURM_JOB_NUM_NODES
say "attempt of job $identity on $nodes node(s), restarted ${SLURM_RESTART_COUNT:-0} times"

# A token of this job's own, so that no other user of these nodes gets into its Ray. It travels in the environment.
RAY_AUTH_TOKEN=$("${inside[@]}" "$python" -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

# Ports: 0 lets the system choose, and no two jobs, or nodes that are one machine, can collide. Only the Ray client
# server, which nobody uses and which cannot be left out, must be told one.
common=(--num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats --min-worker-port=0 --max-worker-port=0)
common+=(--dashboard-agent-listen-port=0 ${object_store:+--object-store-memory="$object_store"})
# Processes that nobody needs here: what sends the output of workers to the job, and an autoscaler.
[ -n "${ONEDIFFUSION_VERBOSE:-}" ] || common+=(--include-log-monitor=false)
here=()
if [ "$nodes" -gt 1 ]; then
    other=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -v -x "$SLURMD_NODENAME" | head -n 1)
    peer=$(scontrol --oneliner show node "$other" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
    address=$("${inside[@]}" "$python" -m cluster.slurm.node address "${peer:-$other}") || fail "$other cannot be reached from here"
    here=(--node-ip-address="$address")
fi
start_head() {
    rm -f "$scratch/ray_current_cluster"
    local client
    client=$("${inside[@]}" "$python" -m cluster.slurm.node port) || return 1
    "${inside[@]}" "${ray[@]}" --head --port=0 --ray-client-server-port="$client" --include-dashboard=false \
        --dashboard-port=0 --no-monitor "${here[@]}" "${common[@]}" --temp-dir="$scratch" \
        </dev/null >"$scratch/head.out" 2>&1 &
    head=$!
    until [ -s "$scratch/ray_current_cluster" ]; do
        kill -0 "$head" 2>/dev/null || return 1
        [ -z "$asked" ] || come_back
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.2
    done
    sleep 1 # it has ended by now if another took the port in between
    kill -0 "$head" 2>/dev/null
}
for attempt in 1 2 3; do
    ! start_head || break
    cat "$scratch/head.out"
    [ "$attempt" -lt 3 ] && [ "$SECONDS" -lt "$deadline" ] || fail "Ray did not start on $SLURMD_NODENAME"
done
RAY_ADDRESS=$(cat "$scratch/ray_current_cluster")
export RAY_ADDRESS

# Steps read from a pipe that nobody writes to: it ends with this script, however that ends, and they end with it.
mkfifo "$scratch/life"
step=(srun --overlap --export=ALL --mpi=none --cpu-bind=none --kill-on-bad-exit=0 --chdir="$working_dir")

# A preemption that grants some time begins with SIGTERM to the steps, not to this script: a step that only listens.
{
    "${step[@]}" --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" --gres=none bash -c 'read -r _; exit 0' 2>/dev/null
    [ $? -ne 143 ] || kill -TERM $$
} <"$scratch/life" &
listener=$!
exec 9>"$scratch/life"

if [ "$nodes" -gt 1 ]; then
    read -r -d '' node_body <<'BODY'
root=$1 python=$2
shift
scratch=$(mktemp -d "$root/ray-XXXXXX") || exit 1
exec 3<&0
"$@" --temp-dir="$scratch" </dev/null >"$scratch/out" 2>&1 3<&- &
ray=$!
(while read -r _; do :; done <&3; touch "$scratch/over"; exec "$python" -m cluster.slurm.node end "$ray") &
life=$!
exec 3<&-
ended=""
trap 'ended=143' TERM
while kill -0 "$ray" 2>/dev/null; do wait "$ray"; done
if [ -e "$scratch/over" ]; then
    wait "$life"
    ended=0
elif [ -z "$ended" ]; then
    tail -n 20 "$scratch/out"
    ended=1
fi
kill "$life" 2>/dev/null
rm -rf "$scratch"
exit "$ended"
BODY
    {
        "${step[@]}" --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --ntasks-per-node=1 --exclude="$SLURMD_NODENAME" \
            --cpus-per-task="$cpus" ${gres:+--gres="$gres"} "${container[@]}" bash -c "$node_body" ray \
            "$scratch_root" "${ray[@]}" --address="$RAY_ADDRESS" "${common[@]}"
        [ $? -eq 143 ] || kill -USR2 $$
    } <"$scratch/life" 9>&- &
    workers=$!
    "${inside[@]}" "$python" -m cluster.slurm.node joined "$RAY_ADDRESS" "$nodes" "$((deadline - SECONDS))" 9>&- </dev/null &
    joining=$!
    while kill -0 "$joining" 2>/dev/null; do
        if [ -n "$asked" ] || ! kill -0 "$workers" 2>/dev/null; then kill "$joining" 2>/dev/null; fi
        sleep 0.2
    done
    wait "$joining" || [ -n "$asked" ] || fail "the nodes of this job do not come together"
fi
[ -z "$asked" ] || come_back

trap lost USR2
"${inside[@]}" "$python" -m pipelines "${arguments[@]}" </dev/null 9>&- &
job=$!
[ -z "$asked" ] || kill -s "$asked" "$job"
[ -z "$workers" ] || kill -0 "$workers" 2>/dev/null || lost
# Without Ray the job can do nothing, and is long in finding out: when the head ends, or Slurm ends all processes of the
# job (then `tail` is one of them), it has a moment more, so that there is time to clean up as well.
{
    trap : TERM
    tail --pid="$head" -f /dev/null
    read -r -t 5 _
    [ $? -le 128 ] || kill -KILL "$job"
} <"$scratch/life" 9>&- 2>/dev/null &
guard=$!
await "$job"
code=$?
kill -0 "$head" 2>/dev/null || say "Ray on $SLURMD_NODENAME ended before the job"
# 138, 143: the signal came before the job could answer it.
[ "$code" -ne 75 ] || come_back
[ -z "$asked" ] || { [ "$code" -ne 138 ] && [ "$code" -ne 143 ]; } || come_back
finish
exit "$code"
