package org.json

class JSONArray {
    fun getInt(index: Int): Int = error("a declaration alone")
}

class JSONObject(json: String) {
    fun opt(name: String?): Any? = error("a declaration alone")

    fun has(name: String?): Boolean = error("a declaration alone")

    fun getInt(name: String): Int = error("a declaration alone")

    fun optInt(name: String?, fallback: Int): Int = error("a declaration alone")

    fun optString(name: String?, fallback: String): String = error("a declaration alone")

    fun getJSONArray(name: String): JSONArray = error("a declaration alone")

    fun getJSONObject(name: String): JSONObject = error("a declaration alone")
}
