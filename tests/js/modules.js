// Imports a module of static/js as it is: in a copy of the folder with a package.json that says they are modules.
// MODULES names another folder to take them from, as tests/test_served.py does with what the server sends.

import { cpSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath, pathToFileURL } from "node:url"

const folder = mkdtempSync(join(tmpdir(), "modules-"))
process.on("exit", () => rmSync(folder, { recursive: true, force: true }))
const source = process.env.MODULES ?? fileURLToPath(new URL("../../static/js", import.meta.url))
cpSync(source, folder, { recursive: true })
writeFileSync(join(folder, "package.json"), '{"type": "module"}')

export const modules = (path) => import(pathToFileURL(join(folder, path)).href)
