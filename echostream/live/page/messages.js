// Written by scripts/live_messages.py from echostream/live/messages.py; do not edit.
export const START = "start";
export const RESUME = "resume";
export const END = "end";
export const READY = "ready";
export const TRANSCRIPT = "transcript";
export const TRANSLATION = "translation";
export const SPEECH = "speech";
export const STATUS = "status";
export const DONE = "done";
export const ERROR = "error";
export const RESUME_MS = 30000;
